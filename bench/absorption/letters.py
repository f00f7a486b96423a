"""What every SAE of a layer shares: words, their activations and the probe that reads letters off.

The words and the probe are sae_bench's own, drawn with the suite's seed; the passes stop at the
hook. Nothing here depends on an SAE.
"""

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.absorption.config import AbsorptionConfig
from bench.absorption.engine import seeded
from bench.context import EvalContext

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROBE, AGAIN = "letters", "letters again"
"""The two things that are kept."""
WORDS = "words"
"""The test words in one text, a word per line."""


class Letters(NamedTuple):
    """Words in examples of spelling, seen at one layer, and the probe for their first letters."""

    weight: "Tensor"
    """[26, d_in] of the probe."""
    x_train: "Tensor"
    """[n_train, d_in] words that probes on latents are fitted to."""
    y_train: "Tensor"
    """[n_train] first letter, 0 to 25."""
    x_test: "Tensor"
    y_test: "Tensor"
    scores: "Tensor"
    """[n_test, 26] the probe's logits on the other words."""
    x_again: "Tensor"
    """[n_found, d_in] test words whose letter the probe finds, in new examples, by letter."""
    y_again: "Tensor"


def letters_of(ctx: EvalContext, cfg: AbsorptionConfig, layer: int) -> Letters:
    """Computed once per model, layer, settings and seed."""
    settings = {
        "layer": layer,
        "seed": ctx.seed,
        "template": cfg.prompt_template,
        "position": cfg.prompt_token_pos,
    }
    # apart, because sae_bench too keeps the first, and draws the second anew for every SAE
    probe = ctx.cache.tensors(
        ctx.content("base", __file__, what=PROBE, **settings), lambda: _probe(ctx, cfg, layer)
    )
    again = ctx.cache.tensors(
        ctx.content("base", __file__, what=AGAIN, **settings),
        lambda: _again(ctx, cfg, layer, probe),
    )
    names = {name: probe[name] for name in probe if name in Letters._fields}
    return Letters(**names, **again)


def _probe(ctx: EvalContext, cfg: AbsorptionConfig, layer: int) -> "dict[str, Tensor]":
    """The words as the model reads them, and the probe."""
    import torch
    from sae_bench.evals.absorption import common

    with tempfile.TemporaryDirectory(dir=_scratch(ctx)) as folder:
        where: Any = {
            "base_template": cfg.prompt_template,
            "pos_idx": cfg.prompt_token_pos,
            "layer": layer,
            "probes_dir": folder,
        }
        with seeded(ctx) as model:
            stopped = _Stopped(model, layer)
            probe = common.load_or_train_probe(stopped, device=ctx.device, **where)  # type: ignore
            train, test = (
                common.load_probe_data_split_or_train(
                    stopped,  # type: ignore[arg-type]
                    split=split,
                    device="cpu",
                    **where,
                )
                for split in ("train", "test")
            )
    with torch.no_grad():
        scores = probe(test[0].to(ctx.device)).float().cpu()
    words = "\n".join(word for word, _ in test[1]).encode()
    return {
        "weight": probe.weights.detach(),
        "x_train": train[0],
        "y_train": torch.tensor([letter for _, letter in train[1]]),
        "x_test": test[0],
        "y_test": torch.tensor([letter for _, letter in test[1]]),
        "scores": scores,
        WORDS: torch.frombuffer(bytearray(words), dtype=torch.uint8),
    }


def _again(
    ctx: EvalContext, cfg: AbsorptionConfig, layer: int, probe: "dict[str, Tensor]"
) -> "dict[str, Tensor]":
    """The test words whose letter the probe finds, in other examples."""
    import torch

    test = bytes(probe[WORDS].tolist()).decode().split("\n")
    y, scores = probe["y_test"].tolist(), probe["scores"]
    words = [
        [word for i, word in enumerate(test) if y[i] == letter and scores[i, letter] > 0]
        for letter in range(len(LETTERS))
    ]
    with seeded(ctx) as model, torch.no_grad():  # as when an SAE is evaluated after the probes
        x = _in_new_examples(model, cfg, layer, words)
    y_again = torch.tensor([i for i, some in enumerate(words) for _ in some], dtype=torch.long)
    return {"x_again": x, "y_again": y_again}


def _scratch(ctx: EvalContext) -> str:
    ctx.work.mkdir(parents=True, exist_ok=True)
    return str(ctx.work.resolve())


class _Stopped:
    """A model whose passes end at a layer, for code that reads nothing above it."""

    def __init__(self, model: "HookedTransformer", layer: int):
        self.cfg, self.tokenizer = model.cfg, model.tokenizer
        self._model, self._layer = model, layer

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> Any:
        return self._model.run_with_cache(
            prompts, names_filter=names_filter, stop_at_layer=self._layer + 1
        )


def _in_new_examples(
    model: "HookedTransformer", cfg: AbsorptionConfig, layer: int, words: Sequence[list[str]]
) -> "Tensor":
    """Activations [n, d_in] of the words of each letter in prompts that sae_bench would draw.

    It draws them anew for every SAE, from the state of the seed. Raises ValueError, as it does, if
    the prompts of one letter differ in length.
    """
    import torch
    from sae_bench.evals.absorption import feature_absorption
    from sae_bench.evals.absorption.feature_absorption_calculator import (
        FeatureAbsorptionCalculator,
    )
    from sae_bench.evals.absorption.prompting import first_letter_formatter

    calculator = FeatureAbsorptionCalculator(
        model=model,
        icl_word_list=feature_absorption.get_alpha_tokens(model.tokenizer),  # type: ignore
        max_icl_examples=10,
        base_template=cfg.prompt_template,
        answer_formatter=first_letter_formatter(),
        word_token_pos=cfg.prompt_token_pos,
    )
    kept = [torch.empty(0, model.cfg.d_model, dtype=model.cfg.dtype, device=model.cfg.device)]
    for some in words:
        prompts = calculator._build_prompts(some)
        calculator._validate_prompts_are_same_length(prompts)
        for start in range(0, len(prompts), cfg.llm_batch_size):
            batch = [prompt.base for prompt in prompts[start : start + cfg.llm_batch_size]]
            x = model(model.to_tokens(batch), stop_at_layer=layer + 1)
            kept.append(x[:, cfg.prompt_token_pos])
    return torch.cat(kept)
