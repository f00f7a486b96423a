"""The data sets that unlearning reads: questions, what is to be forgotten, what is to be kept."""

from pathlib import Path

from bench.needs import DataNeed
from bench.unlearning.config import RETAIN, UnlearningConfig
from bench.unlearning.grid import HAZARD

QUESTION = ("question", "choices", "answer")
FILES = (".jsonl", ".parquet")
"""Endings of a corpus that is a local file."""


def needs(cfg: UnlearningConfig) -> tuple[DataNeed, ...]:
    """Everything that is read with these settings, local files left out."""
    return (
        *(
            DataNeed("cais/wmdp" if name == HAZARD else "cais/mmlu", "test", name, QUESTION)
            for name in cfg.dataset_names
        ),
        *(_corpus(name) for name in (cfg.forget, cfg.retain) if Path(name).suffix not in FILES),
    )


def _corpus(name: str) -> DataNeed:
    if name == RETAIN:
        return DataNeed(name, "test", "wikitext-2-raw-v1", ("text",))
    return DataNeed(name, columns=("text",))
