"""The result record: one finished cell (SAE x suite), and the two tables made of cells.

The only door for report/: imports no torch, so that a laptop can draw.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.files import write_atomic

SCHEMA = 1
State = Literal["ok", "failed", "skipped", "invalid"]
Role = Literal["trained", "control", "imported"]

CELL_FILE = "cell.json"


@dataclass(frozen=True)
class SaeInfo:
    """What made an SAE. None = not known or does not apply, never a stand-in value."""

    label: str
    """Unique name in its run, for example `topk_k8_s0`."""
    role: Role
    variant: str
    world: str
    """`nano` (synthetic) or `real`."""
    model: str
    """The model whose activations it was trained on."""
    hook_name: str
    d_in: int | None
    d_sae: int | None
    init_seed: int | None = None
    data_seed: int | None = None
    knob_name: str | None = None
    knob_value: float | None = None
    target_l0: float | None = None
    l0: float | None = None
    """Mean active latents per token on the held-out split, from the saved file."""
    train_tokens: int | None = None


@dataclass(frozen=True)
class MetricValue:
    """One metric of one cell."""

    name: str
    value: float | None
    direction: str
    headline: bool
    reason: str = ""
    """Why `value` is None."""


@dataclass(frozen=True)
class UnitValue:
    """One resampling unit of one metric of one cell."""

    metric: str
    unit_kind: str
    unit: str
    value: float
    n: int


@dataclass(frozen=True)
class Cell:
    """One SAE on one suite: how it ended and what it measured."""

    cell_key: str
    suite: str
    sae: SaeInfo
    state: State
    engine: str
    data_revision: str
    eval_seed: int | None
    metrics: tuple[MetricValue, ...] = ()
    units: tuple[UnitValue, ...] = ()
    reason: str = ""
    """Why the state is not `ok`."""
    detail: str = ""
    """The traceback of a failed cell."""
    wall_s: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def save(self, folder: Path) -> None:
        """Write `folder`/cell.json atomically. NaN is refused: a missing value is None."""
        text = json.dumps(asdict(self), indent=1, allow_nan=False)
        write_atomic(folder / CELL_FILE, text)

    @classmethod
    def load(cls, folder: Path) -> "Cell":
        """Read a saved cell. Raises ValueError for another schema."""
        return cls.from_dict(json.loads((folder / CELL_FILE).read_text()))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Cell":
        if raw.get("schema") != SCHEMA:
            raise ValueError(f"cell has schema {raw.get('schema')}, this version reads {SCHEMA}")
        raw = dict(raw)
        raw["sae"] = SaeInfo(**raw["sae"])
        raw["metrics"] = tuple(MetricValue(**m) for m in raw["metrics"])
        raw["units"] = tuple(UnitValue(**u) for u in raw["units"])
        return cls(**raw)
