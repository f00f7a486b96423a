"""How often and how strongly latents fire on the two corpora, and which of them sae_bench clamps:
those of the forget texts that benign texts rarely need.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.context import EvalContext, seed_all
from bench.counters import Work, counting
from bench.unlearning.config import UnlearningConfig
from bench.unlearning.corpora import reading_corpora
from bench.unlearning.direction import Activations, Sample
from bench.unlearning.strength import Strengths

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformer_lens import HookedTransformer


class Rates(NamedTuple):
    """What the latents of one SAE do on both corpora, special tokens left out. All [d_sae]."""

    forget: "np.ndarray[Any, Any]"
    """Share of the tokens that each fires on."""
    retain: "np.ndarray[Any, Any]"
    high: "Tensor"
    """99th percentile of its activation over the tokens of both where it fires; 0 if nowhere."""
    work: Work

    def top(self, threshold: float) -> list[int]:
        """sae_bench's order of the latents that fire on less than `threshold` of benign tokens."""
        from sae_bench.evals.unlearning.utils.feature_activation import get_top_features

        return get_top_features(self.forget, self.retain, retain_threshold=threshold).tolist()


class Census(NamedTuple):
    """Both corpora, read once."""

    rates: list[Rates | Exception]
    """Of each SAE; one that fails leaves its exception, for its own cell."""
    activations: Mapping[int, Activations]
    """Layer -> what the model itself does there."""


def census(
    ctx: EvalContext, cfg: UnlearningConfig, model: "HookedTransformer", saes: Sequence[Any]
) -> Census:
    """All SAEs on the same tokens, which go through the model once.

    They are the tokens that sae_bench draws for an SAE that is evaluated alone.
    """
    from sae_bench.evals.unlearning.utils.feature_activation import (
        get_shuffled_forget_retain_tokens,
    )

    seed_all(ctx.seed)
    with reading_corpora(ctx, cfg):
        corpora = get_shuffled_forget_retain_tokens(
            model, batch_size=cfg.dataset_size, seq_len=cfg.seq_len
        )
    counts = [_Counts(sae) for sae in saes]
    samples: list[dict[int, Sample]] = []
    with ExitStack() as stack:
        works = [stack.enter_context(counting(saes=[sae])) for sae in saes]
        for tokens in corpora:
            samples.append(_read(model, tokens, cfg.llm_batch_size, counts))
    forget, retain = samples
    return Census(
        [count.error or count.rates(work) for count, work in zip(counts, works, strict=True)],
        {layer: Activations(forget[layer], retain[layer]) for layer in forget},
    )


def hook_of(sae: Any) -> str:
    """The name of the hook that an SAE reads."""
    return sae.cfg.metadata.hook_name


def layer_of(sae: Any) -> int:
    """The block behind which an SAE reads the residual stream."""
    return int(hook_of(sae).split(".")[1])


class _Counts:
    """One SAE on one corpus after the other."""

    def __init__(self, sae: Any):
        self.sae, self.layer = sae, layer_of(sae)
        self.error: Exception | None = None
        self._fired: list[Tensor] = []
        self._n_text: list[int] = []
        self._strengths = Strengths(sae.cfg.d_sae, sae.device)

    def begin(self) -> None:
        """A corpus starts."""
        import torch

        self._fired.append(
            torch.zeros(self.sae.cfg.d_sae, dtype=torch.long, device=self.sae.device)
        )
        self._n_text.append(0)

    def add(self, x: "Tensor", is_text: "Tensor") -> None:
        """Activations [B, T, d_in] of tokens of which some [B, T] are text."""
        if self.error:
            return
        try:
            f = self.sae.encode(x) * is_text[..., None]  # [B, T, d_sae]
            self._fired[-1] += (f > 0).sum((0, 1))
            self._strengths.add(f)
        except Exception as error:  # of whatever kind, it must not cost the others
            self.error = error
        self._n_text[-1] += int(is_text.sum())

    def rates(self, work: Work) -> Rates:
        forget, retain = (
            # in single precision and to six decimals as in sae_bench's file: they order the latents
            _as_written(fired.float() / n)
            for fired, n in zip(self._fired, self._n_text, strict=True)
        )
        return Rates(forget, retain, self._strengths.quantile(0.99), work)


def _read(
    model: "HookedTransformer", tokens: "Tensor", per_call: int, counts: Sequence[_Counts]
) -> dict[int, Sample]:
    """Pass a corpus [n, T] through the model and on to the SAEs; a sample of it for each layer."""
    samples = {layer: Sample(tokens.numel()) for layer in sorted({c.layer for c in counts})}
    for count in counts:
        count.begin()
    for batch in tokens.split(per_call):
        is_text = _is_text(model, batch)
        for layer, sample in samples.items():
            x = model(batch, stop_at_layer=layer + 1)  # [B, T, d_in]
            sample.add(x, is_text)
            for count in counts:
                if count.layer == layer:
                    count.add(x, is_text)
    return samples


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
