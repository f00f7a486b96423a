"""One file of data that something reads from the hub or a mirror, and how much of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

CHARS_PER_TOKEN = 8
"""Characters taken per token that is needed. Prose has four to five, code and other languages
fewer, so that about half of what is fetched is margin."""
HUB_IDS = {
    "wikitext": "Salesforce/wikitext",
    "bio-forget-corpus": "cais/wmdp-bio-forget-corpus",
}
"""Name under which sae_bench asks for a data set -> where it lies on the hub now."""
ASK_FOR = {
    "bio-forget-corpus": (
        "request access at https://huggingface.co/datasets/cais/wmdp-bio-forget-corpus and log in, "
        "or give bio-forget-corpus.jsonl or bio-forget-corpus.parquet (a column `text`): as "
        "suites.unlearning.forget in the config, or to a mirror with `data fetch --file "
        "bio-forget-corpus=PATH`"
    ),
}
"""Data set behind a licence -> where to ask, and what is accepted instead."""


@dataclass(frozen=True)
class DataNeed:
    """A split of a data set: all of its rows, or as many as reach each bound that is given."""

    path: str
    """The id by which the code asks for it."""
    split: str | None = "train"
    """None = every split that there is."""
    config: str | None = None
    columns: tuple[str, ...] = ()
    """What is read of a row, the text first; none = everything."""
    n_rows: int | None = None
    """Rows from the start that are enough."""
    n_chars: int | None = None
    """Characters of the first column, from the start, that are enough."""
    groups: tuple[str, ...] = ()
    """Values of `group_by` of which `n_per_group` rows each are enough; other rows are left out."""
    group_by: str = ""
    n_per_group: int = 0
    longer_than: int = 0
    """Only rows whose first column has more characters than this count for a group."""

    @property
    def hub_id(self) -> str:
        """Where it lies on the hub."""
        return HUB_IDS.get(self.path, self.path)

    @property
    def folder(self) -> str:
        """Its folder in a mirror's data."""
        return f"{self.path}/{self.config}" if self.config else self.path

    @property
    def file(self) -> str:
        """Its file in a mirror's data. Raises ValueError where the split is not one."""
        if self.split is None:
            raise ValueError(f"{self.path}: one split has a file, all splits have several")
        return f"{self.folder}/{self.split}.jsonl"

    def of_split(self, split: str) -> "DataNeed":
        """The same of one split."""
        return replace(self, split=split)

    @property
    def is_bounded(self) -> bool:
        """Whether less than the whole split is enough."""
        return bool(self.n_rows or self.n_chars or self.groups)

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether a row belongs to what is needed."""
        return not self.groups or row[self.group_by] in self.groups

    def covers(self, other: "DataNeed") -> bool:
        """Whether a file with all of this need satisfies another need of the same split."""
        return (self.file == other.file) and merged([self, other]) == (self,)


def text_need(path: str, column: str, n_tokens: int) -> DataNeed:
    """The start of a data set of texts that gives `n_tokens` tokens to any usual tokenizer."""
    return DataNeed(path, columns=(column,), n_chars=n_tokens * CHARS_PER_TOKEN)


def merged(needs: Iterable[DataNeed]) -> tuple[DataNeed, ...]:
    """The same needs with each file once, in order of first mention."""
    found: dict[tuple[str, str | None], DataNeed] = {}
    for need in needs:
        key = (need.folder, need.split)
        found[key] = _both(found[key], need) if key in found else need
    return tuple(found.values())


def _both(one: DataNeed, other: DataNeed) -> DataNeed:
    """The need that satisfies both: every column, the larger of each bound."""
    if not (one.is_bounded and other.is_bounded) or bool(one.groups) != bool(other.groups):
        # one of them needs every row
        bounds: dict[str, Any] = {"n_rows": None, "n_chars": None, "groups": (), "n_per_group": 0}
    else:
        bounds = {
            "n_rows": max(one.n_rows or 0, other.n_rows or 0) or None,
            "n_chars": max(one.n_chars or 0, other.n_chars or 0) or None,
            "groups": tuple(dict.fromkeys([*one.groups, *other.groups])),
            "n_per_group": max(one.n_per_group, other.n_per_group),
            "longer_than": max(one.longer_than, other.longer_than),
        }
    # no columns stands for all of them
    both = one.columns and other.columns
    columns = tuple(dict.fromkeys([*one.columns, *other.columns])) if both else ()
    return replace(one, columns=columns, **bounds)
