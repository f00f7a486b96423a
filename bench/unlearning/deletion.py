"""The control without an SAE: how far does deleting the hazard's words get?"""

from typing import Any

from bench.context import EvalContext
from bench.unlearning.config import UnlearningConfig
from bench.unlearning.engine import UnlearningEngine
from bench.unlearning.grid import Setting, best, everything
from bench.unlearning.questions import CORPUS
from bench.word_deletion import hazard_words


def word_deletion_score(ctx: EvalContext, cfg: UnlearningConfig, engine: UnlearningEngine) -> float:
    """sae_bench's score for deleting as many words as latents are clamped; once per model."""
    import torch

    def make() -> dict[str, Any]:
        return {"score": torch.tensor(_score(ctx, cfg, engine), dtype=torch.float64)}

    key = ctx.content(
        "instruct",
        __file__,
        what="word deletion",
        engine=ctx.engine,
        datasets=list(cfg.dataset_names),
        thresholds=list(cfg.retain_thresholds),
        n_words=list(cfg.n_features_list),
    )
    return ctx.cache.tensors(key, make)["score"].item()


def _score(ctx: EvalContext, cfg: UnlearningConfig, engine: UnlearningEngine) -> float:
    forget = [row["text"] for row in ctx.hub.load_dataset(CORPUS, split="train")]
    retain = [
        row["text"] for row in ctx.hub.load_dataset("wikitext", "wikitext-2-raw-v1", split="test")
    ]
    settings = []
    for threshold in cfg.retain_thresholds:
        ranked = hazard_words(forget, retain, threshold)
        for n in cfg.n_features_list:
            correct = engine.without_words(frozenset(ranked[:n]))
            settings.append(Setting(0, n, threshold, correct))
    chosen = best(settings, everything)
    return 1 - chosen.hazard(everything) if chosen else 0.0
