"""From cells to what the leaderboard and the plots show: one row per recipe, seeds averaged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from bench.result import Cell, RunResult, SaeInfo

ROLES = ("trained", "control", "imported")
"""The order in which they are shown."""
BESIDE = {"unlearning_score": "saebench060_unlearning_score"}
"""Headline metric -> sae_bench's own value, which is shown next to it."""


class Column(NamedTuple):
    """One headline metric."""

    suite: str
    metric: str
    direction: str


class Setting(NamedTuple):
    """What numbers must share to be compared."""

    world: str
    model: str
    hook_name: str


class Point(NamedTuple):
    """One SAE on one headline metric."""

    l0: float | None
    value: float


class Stat(NamedTuple):
    """A number over the seeds of a row."""

    mean: float | None
    """None if a seed has no value: a mean over the rest would flatter the row."""
    sd: float | None
    """Sample standard deviation; None for one seed."""
    reasons: tuple[str, ...] = ()
    """Why there is no mean."""


@dataclass(frozen=True)
class Row:
    """SAEs that differ only in their seed."""

    run: str
    setting: Setting
    role: str
    variant: str
    label: str
    n: int
    """How many SAEs."""
    l0: Stat
    values: dict[Column, Stat]
    points: dict[Column, tuple[Point, ...]]
    notes: tuple[str, ...]
    """What is not ok, by suite."""
    remarks: tuple[str, ...] = ()
    """What has to be known beside a value, by suite."""


@dataclass(frozen=True)
class Invalid:
    """A degenerate SAE and everything that shows it."""

    run: str
    setting: Setting
    role: str
    variant: str
    label: str
    l0: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """Everything a leaderboard says, in the order it says it."""

    runs: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    invalid: tuple[Invalid, ...]
    engines: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What computed the results, and the suites that it did so for."""

    @property
    def settings(self) -> list[Setting]:
        """Every setting with a row, in order of appearance."""
        return list(dict.fromkeys(row.setting for row in self.rows))

    @property
    def worlds(self) -> list[str]:
        """Every world that is shown, invalid SAEs included."""
        shown = [*self.rows, *self.invalid]
        return list(dict.fromkeys(entry.setting.world for entry in shown))

    def columns_of(self, setting: Setting) -> list[Column]:
        """Headline metrics of the suites that some SAE of the setting was scored by."""
        rows = [row for row in self.rows if row.setting == setting]
        return [c for c in self.columns if any(c in row.values for row in rows)]


class _Sae(NamedTuple):
    """All cells of one SAE."""

    run: str
    info: SaeInfo
    cells: dict[str, Cell]
    """By suite."""
    l0: float | None


def summarise(runs: Sequence[RunResult]) -> Summary:
    """Order: trained by variant and L0, controls, imported. Expects cells that were judged."""
    saes = [sae for run in runs for sae in _saes(run)]
    columns = _columns(cell for run in runs for cell in run.cells)
    invalid = [sae for sae in saes if _is_invalid(sae)]
    groups: dict[tuple[object, ...], list[_Sae]] = {}
    for sae in saes:
        if not _is_invalid(sae):
            groups.setdefault(_recipe(sae), []).append(sae)
    n_invalid = [_recipe(sae) for sae in invalid]
    suites = _suites(saes)
    rows = [
        _row(
            group,
            [c for c in columns if c.suite in suites[_setting(group[0].info)]],
            n_invalid.count(key),
        )
        for key, group in groups.items()
    ]
    return Summary(
        runs=tuple(run.name for run in runs),
        columns=columns,
        rows=tuple(sorted(rows, key=_order)),
        invalid=tuple(_invalid(sae) for sae in invalid),
        engines=_engines(cell for run in runs for cell in run.cells),
    )


def _engines(cells: Iterable[Cell]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    suites: dict[str, dict[str, None]] = {}
    for cell in cells:
        suites.setdefault(cell.engine, {})[cell.suite] = None
    return tuple((engine, tuple(found)) for engine, found in suites.items())


def _saes(run: RunResult) -> list[_Sae]:
    by_label: dict[str, dict[str, Cell]] = {}
    for cell in run.cells:
        by_label.setdefault(cell.sae.label, {})[cell.suite] = cell
    return [_sae(run.name, cells) for cells in by_label.values()]


def _sae(run: str, cells: dict[str, Cell]) -> _Sae:
    infos = [cell.sae for cell in cells.values()]
    # an imported SAE has its L0 only where its core result was imported
    l0 = next((info.l0 for info in infos if info.l0 is not None), None)
    return _Sae(run, infos[0], cells, l0)


def _columns(cells: Iterable[Cell]) -> tuple[Column, ...]:
    """Headline metrics suite by suite, in order of appearance, and what belongs beside them."""
    by_suite: dict[str, dict[Column, None]] = {}
    for cell in cells:
        shown = by_suite.setdefault(cell.suite, {})
        columns = {m.name: Column(cell.suite, m.name, m.direction) for m in cell.metrics}
        for metric in cell.metrics:
            if metric.headline:
                shown[columns[metric.name]] = None
                if beside := columns.get(BESIDE.get(metric.name, "")):
                    shown[beside] = None
    return tuple(column for shown in by_suite.values() for column in shown)


def _is_invalid(sae: _Sae) -> bool:
    if sae.info.role == "control":  # degenerate on purpose
        return False
    return any(cell.state == "invalid" for cell in sae.cells.values())


def _suites(saes: list[_Sae]) -> dict[Setting, set[str]]:
    """Which suites scored any SAE of a setting."""
    suites: dict[Setting, set[str]] = {}
    for sae in saes:
        suites.setdefault(_setting(sae.info), set()).update(sae.cells)
    return suites


def _setting(info: SaeInfo) -> Setting:
    return Setting(info.world, info.model, info.hook_name)


def _recipe(sae: _Sae) -> tuple[object, ...]:
    info = sae.info
    return (sae.run, _setting(info), info.role, info.variant, _without_seed(info))


def _without_seed(info: SaeInfo) -> str:
    return info.label.removesuffix(f"_s{info.init_seed}")


def _row(saes: list[_Sae], columns: list[Column], n_invalid: int) -> Row:
    info = saes[0].info
    return Row(
        run=saes[0].run,
        setting=_setting(info),
        role=info.role,
        variant=info.variant,
        label=info.label if len(saes) == 1 and not n_invalid else _without_seed(info),
        n=len(saes),
        l0=_l0(saes),
        values={c: _stat(saes, c) for c in columns},
        points={c: tuple(_points(saes, c)) for c in columns},
        notes=_notes(saes, n_invalid),
        remarks=_remarks(saes),
    )


def _l0(saes: list[_Sae]) -> Stat:
    values = [sae.l0 for sae in saes if sae.l0 is not None]
    return _mean(values, len(saes), ("L0 was not measured",))


def _stat(saes: list[_Sae], column: Column) -> Stat:
    found = [(sae, *_value(sae, column)) for sae in saes]
    values = [value for _, value, _ in found if value is not None]
    named = len(saes) > 1
    why = [f"{s.info.label}: {r}" if named else r for s, value, r in found if value is None]
    return _mean(values, len(saes), tuple(dict.fromkeys(why)))


def _mean(values: list[float], n: int, reasons: tuple[str, ...]) -> Stat:
    if len(values) < n:
        return Stat(None, None, reasons)
    return Stat(fmean(values), stdev(values) if n > 1 else None)


def _points(saes: list[_Sae], column: Column) -> Iterable[Point]:
    for sae in saes:
        value, _ = _value(sae, column)
        if value is not None:
            yield Point(sae.l0, value)


def _value(sae: _Sae, column: Column) -> tuple[float | None, str]:
    """The SAE's value in a column, or None and why."""
    cell = sae.cells.get(column.suite)
    if cell is None:
        return None, f"no {column.suite} result"
    if cell.state != "ok":
        return None, f"{column.suite} {cell.state}: {cell.reason or 'no reason given'}"
    for metric in cell.metrics:
        if metric.name == column.metric:
            return metric.value, metric.reason or "no reason given"
    return None, f"{column.suite} gave no {column.metric}"


def _notes(saes: list[_Sae], n_invalid: int) -> tuple[str, ...]:
    states = [
        f"{suite} {cell.state}"
        for sae in saes
        for suite, cell in sae.cells.items()
        if cell.state != "ok"
    ]
    counted = _counted(states, len(saes))
    return (*counted, f"{n_invalid} more invalid") if n_invalid else counted


def _remarks(saes: list[_Sae]) -> tuple[str, ...]:
    """The first words of what is said beside headline values."""
    said = [
        f"{suite}: {metric.reason.partition(':')[0]}"
        for sae in saes
        for suite, cell in sae.cells.items()
        for metric in cell.metrics
        if cell.state == "ok" and metric.headline and metric.value is not None and metric.reason
    ]
    return _counted(said, len(saes))


def _counted(said: list[str], n: int) -> tuple[str, ...]:
    """Each once, with how many of the `n` SAEs it is said of."""
    return tuple(
        what if n == 1 else f"{what} ({said.count(what)} of {n})" for what in dict.fromkeys(said)
    )


def _invalid(sae: _Sae) -> Invalid:
    reasons = [r for cell in sae.cells.values() for r in cell.evidence or (cell.reason,)]
    return Invalid(
        run=sae.run,
        setting=_setting(sae.info),
        role=sae.info.role,
        variant=sae.info.variant,
        label=sae.info.label,
        l0=sae.l0,
        reasons=tuple(dict.fromkeys(r for r in reasons if r)),
    )


def _order(row: Row) -> tuple[object, ...]:
    l0 = row.l0.mean if row.l0.mean is not None else float("inf")
    return (ROLES.index(row.role), row.variant, l0, row.label, row.run)
