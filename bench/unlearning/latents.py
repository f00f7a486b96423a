"""Which latents sae_bench clamps: those of the forget texts that benign texts rarely need."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.context import EvalContext, seed_all
from bench.counters import Work, counting
from bench.unlearning.config import UnlearningConfig

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformer_lens import HookedTransformer


class Rates(NamedTuple):
    """How often each latent of one SAE fires, per token without special ones. Both [d_sae]."""

    forget: "np.ndarray[Any, Any]"
    retain: "np.ndarray[Any, Any]"
    work: Work

    def top(self, threshold: float) -> list[int]:
        """sae_bench's order of the latents that fire on less than `threshold` of benign tokens."""
        from sae_bench.evals.unlearning.utils.feature_activation import get_top_features

        return get_top_features(self.forget, self.retain, retain_threshold=threshold).tolist()


def firing_rates(
    ctx: EvalContext, cfg: UnlearningConfig, model: "HookedTransformer", saes: Sequence[Any]
) -> list[Rates | Exception]:
    """Rates of each SAE on the same tokens, which go through the model once per hook.

    They are the tokens that sae_bench draws for an SAE that is evaluated alone. An SAE that fails
    leaves its exception, for its own cell.
    """
    from sae_bench.evals.unlearning.utils.feature_activation import (
        get_shuffled_forget_retain_tokens,
    )

    seed_all(ctx.seed)
    corpora = get_shuffled_forget_retain_tokens(
        model, batch_size=cfg.dataset_size, seq_len=cfg.seq_len
    )
    with ExitStack() as stack:
        works = [stack.enter_context(counting(saes=[sae])) for sae in saes]
        forget, retain = (_rates(model, tokens, cfg.llm_batch_size, saes) for tokens in corpora)
    found: list[Rates | Exception] = []
    for a, b, work in zip(forget, retain, works, strict=True):
        failed = next((x for x in (a, b) if isinstance(x, Exception)), None)
        found.append(failed or Rates(_as_written(a), _as_written(b), work))
    return found


def hook_of(sae: Any) -> str:
    """The name of the hook that an SAE reads."""
    return sae.cfg.metadata.hook_name


def layer_of(sae: Any) -> int:
    """The block behind which an SAE reads the residual stream."""
    return int(hook_of(sae).split(".")[1])


def _rates(
    model: "HookedTransformer", tokens: "Tensor", per_call: int, saes: Sequence[Any]
) -> list["Tensor | Exception"]:
    """Share of the tokens [n, T] that each latent fires on, in single precision, for each SAE."""
    import torch

    fired: list[Any] = [torch.zeros(s.cfg.d_sae, dtype=torch.long, device=s.device) for s in saes]
    n_text = 0
    for batch in tokens.split(per_call):
        is_text = _is_text(model, batch)
        n_text += int(is_text.sum())
        for layer in sorted({layer_of(sae) for sae in saes}):
            x = model(batch, stop_at_layer=layer + 1)  # [B, T, d_in]
            for i, sae in enumerate(saes):
                if layer_of(sae) == layer and not isinstance(fired[i], Exception):
                    try:
                        fired[i] += ((sae.encode(x) > 0) & is_text[..., None]).sum((0, 1))
                    except Exception as error:  # of whatever kind, it must not cost the others
                        fired[i] = error
    return [f if isinstance(f, Exception) else f.float() / n_text for f in fired]


def _is_text(model: "HookedTransformer", tokens: "Tensor") -> "Tensor":
    tokenizer: Any = model.tokenizer
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    is_text = tokens != special[0]
    for token in special[1:]:
        is_text &= tokens != token
    return is_text


def _as_written(rates: Any) -> "np.ndarray[Any, Any]":
    """Rounded to the six decimals of sae_bench's file, which change the order of latents."""
    import numpy as np

    return np.array([float(f"{rate:f}") for rate in rates.tolist()])
