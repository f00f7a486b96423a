"""The two corpora on which latents are chosen: what is to be forgotten, and what is to be kept.

Each is a data set of the mirror or the hub, or a local .jsonl or .parquet file; all have a column
`text`. sae_bench reads the first from a .jsonl file below its working directory, the second from
the hub.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.context import EvalContext, patched
from bench.errors import UserError
from bench.unlearning.config import RETAIN, UnlearningConfig
from bench.unlearning.needs import FILES
from bench.user_files import read_rows

COLUMN = "text"
RETAIN_CONFIG, RETAIN_SPLIT = "wikitext-2-raw-v1", "test"
"""What sae_bench reads of wikitext."""
CORPUS_FILE = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")
"""Where sae_bench opens the forget corpus, below the working directory."""


def forget_texts(ctx: EvalContext, cfg: UnlearningConfig) -> list[str]:
    """Every text to be forgotten. Raises UserError for a corpus that is missing or has no texts."""
    return _texts(ctx, "forget", cfg.forget)


def retain_texts(ctx: EvalContext, cfg: UnlearningConfig) -> list[str]:
    """Every text to be kept. Raises UserError for a corpus that is missing or has no texts."""
    return _texts(ctx, "retain", cfg.retain)


@contextmanager
def reading_corpora(ctx: EvalContext, cfg: UnlearningConfig) -> Iterator[None]:
    """sae_bench, in its working directory, reads these corpora for the time of the block."""
    from sae_bench.evals.unlearning.utils import feature_activation

    CORPUS_FILE.parent.mkdir(parents=True, exist_ok=True)
    with CORPUS_FILE.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({COLUMN: text}) + "\n" for text in forget_texts(ctx, cfg))
    rows = [{COLUMN: text} for text in retain_texts(ctx, cfg)]
    with patched(feature_activation, "load_dataset", lambda *args, **kwargs: rows):
        yield


def _texts(ctx: EvalContext, field: str, name: str) -> list[str]:
    where = f"suites.unlearning.{field}={name!r}"
    if Path(name).suffix in FILES:
        if not Path(name).is_file():
            raise UserError(f"{where}: there is no such file")
        rows = read_rows(Path(name))
    elif name == RETAIN:
        rows = ctx.hub.load_dataset(RETAIN, RETAIN_CONFIG, split=RETAIN_SPLIT)
    else:
        rows = ctx.hub.load_dataset(name, split="train")
    texts = []
    for row in rows:
        if not isinstance(row.get(COLUMN), str):
            raise UserError(f"{where}: every row needs a column {COLUMN!r} that holds text")
        texts.append(row[COLUMN])
    if not texts:
        raise UserError(f"{where}: holds no text")
    return texts
