"""The leaderboard: one line per recipe as Markdown, as text for a terminal and as CSV."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from report.summary import Column, Invalid, Row, Setting, Stat, Summary
from report.text import ARROWS, markdown, number, plain, world_label

EMPTY = "-"
HEADER_WIDTH = 16
"""Characters of a column's header in the terminal before it wraps."""


def render_markdown(summary: Summary) -> str:
    """leaderboard.md: a table per setting, the invalid SAEs, and why cells are empty."""
    notes = _Footnotes()
    lines = ["# Leaderboard", "", markdown(f"Runs: {', '.join(summary.runs)}"), ""]
    lines += [
        f"> **{label[0].upper()}{label[1:]}.**\n" for label in map(markdown, _synthetic(summary))
    ]
    for setting in summary.settings:
        lines += [f"## {markdown(_title(setting))}", ""]
        lines += [*_markdown_table(*_grid(summary, setting, notes)), ""]
    if summary.invalid:
        lines += ["## Invalid: never ranked", ""]
        lines += [*_markdown_table(*_invalid_grid(summary)), ""]
    lines += [f"- {markdown(line)}" for line in _legend(summary)]
    lines += [f"- ({i}) {markdown(reason)}" for i, reason in notes]
    return "\n".join(lines) + "\n"


def render_terminal(summary: Summary) -> str:
    """The same as text; names are stripped of control characters."""
    notes = _Footnotes()
    lines = [f"*** {label} ***".upper() for label in _synthetic(summary)]
    for setting in summary.settings:
        lines += ["", plain(_title(setting)), *_text_table(*_grid(summary, setting, notes))]
    if summary.invalid:
        lines += ["", "Invalid: never ranked"]
        for sae in summary.invalid:
            lines.append(f"  {plain(sae.label)} ({plain(_title(sae.setting))})")
            lines += [f"    - {plain(reason)}" for reason in sae.reasons]
    lines += ["", *_legend(summary)]
    for i, reason in notes:
        lines += textwrap.wrap(f"({i}) {plain(reason)}", 110, subsequent_indent="    ")
    return "\n".join(lines).strip("\n") + "\n"


def leaderboard_table(summary: Summary) -> pd.DataFrame:
    """leaderboard.csv: a line per row of the leaderboard, numbers at full precision.

    Columns: run, world, model, hook_name, role, label, variant, n, l0, l0_sd, then per headline
    metric `suite.metric` and its `_sd`, state, notes.
    """
    rows = [_csv_row(row) for row in summary.rows]
    rows += [_csv_invalid(sae) for sae in summary.invalid]
    head = ["run", "world", "model", "hook_name", "role", "label", "variant", "n", "l0", "l0_sd"]
    metrics = [f"{c.suite}.{c.metric}{end}" for c in summary.columns for end in ("", "_sd")]
    return pd.DataFrame(rows, columns=pd.Index([*head, *metrics, "state", "notes"]))


class _Footnotes:
    """Reasons numbered in order of appearance, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, reasons: Iterable[str]) -> str:
        """`1, 2` for two reasons."""
        numbers = [self._numbers.setdefault(r, len(self._numbers) + 1) for r in reasons]
        return ", ".join(map(str, numbers))

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter((i, reason) for reason, i in self._numbers.items())


def _grid(
    summary: Summary, setting: Setting, notes: _Footnotes
) -> tuple[list[str], list[list[str]]]:
    """Header and body of one setting's table, as text that is not escaped yet."""
    columns = summary.columns_of(setting)
    rows = [row for row in summary.rows if row.setting == setting]
    several_runs = len(set(summary.runs)) > 1
    header = ["role", "label", "seeds", "L0", *map(_heading, columns), "notes"]
    body = [
        [
            row.role,
            f"{row.run}: {row.label}" if several_runs else row.label,
            str(row.n),
            _shown(row.l0, notes, digits=1),
            *(_shown(row.values[c], notes) for c in columns),
            ", ".join([*row.notes, *row.remarks]),
        ]
        for row in rows
    ]
    return header, body


def _shown(stat: Stat, notes: _Footnotes, digits: int = 4) -> str:
    if stat.mean is None:
        return f"{EMPTY} ({notes.mark(stat.reasons)})"
    return number(stat.mean, stat.sd, digits)


def _heading(column: Column) -> str:
    return f"{column.suite}: {column.metric} {ARROWS.get(column.direction, '')}".strip()


def _invalid_grid(summary: Summary) -> tuple[list[str], list[list[str]]]:
    body = [
        [sae.role, sae.label, _title(sae.setting), "; ".join(sae.reasons)]
        for sae in summary.invalid
    ]
    return ["role", "label", "setting", "why it is invalid"], body


def _title(setting: Setting) -> str:
    return f"{setting.model}, {setting.hook_name} ({world_label(setting.world)})"


def _synthetic(summary: Summary) -> list[str]:
    return [world_label(w) for w in summary.worlds if world_label(w).startswith("synthetic")]


def _legend(summary: Summary) -> list[str]:
    lines = ["↑ higher is better, ↓ lower is better"]
    if any(row.n > 1 for row in summary.rows):
        lines.append("a±b: mean and standard deviation over the seeds of a row")
    if any(row.role == "control" for row in summary.rows):
        lines.append("controls are shown for reference and never ranked")
    if summary.engines:
        named = [f"{engine} ({', '.join(suites)})" for engine, suites in summary.engines]
        lines.append(f"engine: {'; '.join(named)}")
    return lines


def _markdown_table(header: list[str], body: list[list[str]]) -> list[str]:
    rows = [[markdown(cell) for cell in row] for row in (header, *body)]
    rows.insert(1, ["---"] * len(header))
    return [f"| {' | '.join(row)} |" for row in rows]


def _text_table(header: list[str], body: list[list[str]]) -> list[str]:
    """Columns aligned by width; long headers wrap at their underscores."""
    cells = [[plain(cell) for cell in row] for row in body]
    heads = [_wrapped(title) for title in header]
    depth = max(map(len, heads))
    heads = [[""] * (depth - len(head)) + head for head in heads]  # bottom-aligned
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(header)
    widths = [max(map(len, [*head, *column])) for head, column in zip(heads, columns, strict=True)]
    lines = [_line([head[i] for head in heads], widths) for i in range(depth)]
    lines.append(_line(["-" * width for width in widths], widths))
    previous = ""
    for row in cells:
        if previous and row[0] != previous:
            lines.append("")
        previous = row[0]
        lines.append(_line(row, widths))
    return lines


def _wrapped(title: str) -> list[str]:
    """A header in lines of about HEADER_WIDTH: the suite, then the metric broken after `_`."""
    suite, colon, metric = plain(title).rpartition(": ")
    lines = [f"{suite}:"] if colon else []
    line = ""
    for part in re.findall(r"[^_]*_|[^_]+", metric):
        if line and len(line) + len(part) > HEADER_WIDTH:
            lines.append(line)
            line = ""
        line += part
    return [*lines, line]


def _line(cells: Iterable[str], widths: list[int]) -> str:
    return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()


def _csv_row(row: Row) -> dict[str, Any]:
    stats = {f"{c.suite}.{c.metric}": stat for c, stat in row.values.items()}
    reasons = [r for stat in stats.values() for r in stat.reasons]
    return {
        **_csv_head(row),
        "n": row.n,
        "l0": row.l0.mean,
        "l0_sd": row.l0.sd,
        **{name: stat.mean for name, stat in stats.items()},
        **{f"{name}_sd": stat.sd for name, stat in stats.items()},
        "state": "incomplete" if row.notes else "ok",
        "notes": "; ".join(dict.fromkeys([*row.notes, *row.remarks, *reasons])),
    }


def _csv_invalid(sae: Invalid) -> dict[str, Any]:
    return {
        **_csv_head(sae),
        "n": 1,
        "l0": sae.l0,
        "state": "invalid",
        "notes": "; ".join(sae.reasons),
    }


def _csv_head(entry: Row | Invalid) -> dict[str, Any]:
    return {
        "run": entry.run,
        "world": entry.setting.world,
        "model": entry.setting.model,
        "hook_name": entry.setting.hook_name,
        "role": entry.role,
        "label": entry.label,
        "variant": entry.variant,
    }
