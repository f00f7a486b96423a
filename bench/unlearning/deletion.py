"""The control without an SAE: how far does deleting the hazard's words get?"""

from typing import Any

from bench.context import EvalContext
from bench.keys import content_key
from bench.unlearning.asking import by_question
from bench.unlearning.config import UnlearningConfig
from bench.unlearning.corpora import forget_texts, retain_texts
from bench.unlearning.engine import UnlearningEngine
from bench.unlearning.grid import Setting
from bench.word_deletion import hazard_words


def word_deletion(
    ctx: EvalContext, cfg: UnlearningConfig, engine: UnlearningEngine
) -> list[Setting]:
    """A grid that deletes as many words as latents are clamped; once per model."""
    import torch

    forget, retain = forget_texts(ctx, cfg), retain_texts(ctx, cfg)
    sizes = [(threshold, n) for threshold in cfg.retain_thresholds for n in cfg.n_features_list]

    def make() -> dict[str, Any]:
        ranked = {t: hazard_words(forget, retain, t) for t in cfg.retain_thresholds}
        rows = []
        for threshold, n in sizes:
            correct = engine.without_words(frozenset(ranked[threshold][:n]))
            rows.append(
                [correct[name][i] == 1 for name, asked in engine.ids.items() for i in asked]
            )
        return {"right": torch.tensor(rows)}  # [n_settings, n_questions]

    key = ctx.content(
        "instruct",
        __file__,
        what="word deletion",
        engine=ctx.engine,
        corpora=content_key([forget, retain]),
        datasets=list(cfg.dataset_names),
        thresholds=list(cfg.retain_thresholds),
        n_words=list(cfg.n_features_list),
    )
    found = ctx.cache.tensors(key, make)["right"].tolist()
    return [
        Setting(0, n, threshold, by_question(engine.ids, right))
        for (threshold, n), right in zip(sizes, found, strict=True)
    ]
