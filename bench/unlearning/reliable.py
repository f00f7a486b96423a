"""Which questions a model knows: found once per model, kept with what identifies the model."""

from collections.abc import Callable
from typing import Any

from bench.context import EvalContext
from bench.unlearning import asking
from bench.unlearning.config import UnlearningConfig
from bench.unlearning.corpora import forget_texts
from bench.unlearning.grid import Ids
from bench.unlearning.questions import check_enough


def reliable_ids(
    ctx: EvalContext, cfg: UnlearningConfig, find: Callable[[], Ids]
) -> dict[str, list[int]]:
    """Ids of the questions that are answered right under all 24 orders of their choices.

    `find` is called where they are not known yet. Raises TooFewQuestions, and UserError for a
    forget corpus that is missing: both before anything long.
    """
    import torch

    forget_texts(ctx, cfg)

    def make() -> dict[str, Any]:
        return {name: torch.tensor(ids, dtype=torch.long) for name, ids in find().items()}

    key = ctx.content(
        "instruct",
        asking.__file__,
        what="questions right under all 24 orders",
        engine=ctx.engine,
        datasets=list(cfg.dataset_names),
    )
    found = ctx.cache.tensors(key, make)
    ids = {name: found[name].tolist() for name in cfg.dataset_names}
    check_enough(ids, cfg.min_questions)
    return ids
