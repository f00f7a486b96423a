"""Every headline metric against L0, one PNG each and all of a setting in one overview."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from report.summary import Column, Row, Setting, Summary
from report.text import DIRECTIONS, plain, plot_text, world_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130
PANEL = (6.4, 4.4)
"""Inches of one plot without its legend."""
LEGEND_WIDTH = 2.2
CONTROL_COLOR = "0.35"
CONTROL_LOOKS = (("X", "--"), ("s", ":"), ("^", "-."), ("v", (0, (5, 1))), ("P", (0, (1, 3))))
"""Marker and line style of the first, second, ... control."""
STYLE = {"grid.color": "0.92", "axes.edgecolor": "0.7"}


class _Series(NamedTuple):
    """What is drawn as one line."""

    role: str
    variant: str


def draw_plots(summary: Summary, folder: Path) -> list[Path]:
    """Write the PNGs into `folder`, in place of those of an earlier report; their paths.

    A metric that no SAE has a value for has no plot; the leaderboard says why.
    """
    import seaborn as sns

    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    paths = []
    with sns.axes_style("whitegrid", rc=STYLE), sns.plotting_context("notebook", font_scale=0.9):
        for i, setting in enumerate(summary.settings):
            rows = [row for row in summary.rows if row.setting == setting]
            columns = [c for c in summary.columns_of(setting) if any(_shown(rows, c))]
            if not columns:
                continue
            prefix = f"{i + 1}-{_slug(setting.model)}-" if len(summary.settings) > 1 else ""
            figures = {"overview": _figure(columns, rows, setting)} if len(columns) > 1 else {}
            figures |= {f"{c.suite}-{c.metric}": _figure([c], rows, setting) for c in columns}
            for name, figure in figures.items():
                paths.append(folder / f"{prefix}{_slug(name)}.png")
                # without the library's version in it, the same report is the same file
                figure.savefig(paths[-1], dpi=DPI, metadata={"Software": None})
    return paths


def _figure(columns: list[Column], rows: list[Row], setting: Setting) -> "Figure":
    """One panel per metric and one legend for all."""
    from matplotlib.figure import Figure

    across = min(3, len(columns))
    down = -(-len(columns) // across)
    size = (PANEL[0] * across + LEGEND_WIDTH, PANEL[1] * down + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    looks = _looks(rows)
    for panel, column in zip(panels, columns, strict=False):
        _draw(panel, column, rows, looks)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    figure.suptitle(_title(setting), fontsize="medium")
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure


def _draw(panel: "Axes", column: Column, rows: list[Row], looks: dict[_Series, Any]) -> None:
    import seaborn as sns

    shown = list(_shown(rows, column))
    draw = {"trained": _draw_trained, "control": _draw_control, "imported": _draw_imported}
    for series in dict.fromkeys(map(_series, shown)):
        members = [row for row in shown if _series(row) == series]
        draw[series.role](panel, column, members, looks[series])
    better = DIRECTIONS.get(column.direction)
    panel.set_ylabel(plot_text(column.metric) + (f"\n({better})" if better else ""))
    panel.set_title(plot_text(column.suite), loc="left", fontweight="bold")
    _scale(panel, [p.l0 for row in shown for p in row.points[column] if p.l0])
    sns.despine(ax=panel)


def _shown(rows: list[Row], column: Column) -> Iterator[Row]:
    """Rows with something to draw; without an L0 only a control has a place, a line across."""
    for row in rows:
        if any(p.l0 or row.role == "control" for p in row.points.get(column, ())):
            yield row


def _draw_trained(panel: "Axes", column: Column, rows: list[Row], color: Any) -> None:
    """A point per SAE, and a line through the means over seeds."""
    import seaborn as sns

    x, y = _placed(rows, column)
    sns.scatterplot(x=x, y=y, color=color, alpha=0.6, legend=False, ax=panel)
    panel.plot(*_means(rows, column), color=color, label=plot_text(rows[0].variant), zorder=3)


def _draw_control(panel: "Axes", column: Column, rows: list[Row], look: Any) -> None:
    """A marker per SAE and a line through the means over seeds; across where there is no L0."""
    label = plot_text(f"{rows[0].variant} (control)")
    marker, style = look
    x, y = _placed(rows, column)
    if x:
        panel.plot(x, y, c=CONTROL_COLOR, ls="", marker=marker, label=label)
        panel.plot(*_means(rows, column), c=CONTROL_COLOR, ls=style, lw=1)
    for value in {p.value for row in rows for p in row.points[column] if not p.l0}:
        panel.axhline(value, c=CONTROL_COLOR, ls=style, lw=1.2, label=label)


def _draw_imported(panel: "Axes", column: Column, rows: list[Row], color: Any) -> None:
    x, y = _placed(rows, column)
    label = plot_text(f"{rows[0].variant} (imported)")
    panel.scatter(x, y, color=color, marker="D", edgecolor="white", label=label)


def _placed(rows: list[Row], column: Column) -> tuple[list[float], list[float]]:
    """L0 and value of every SAE that has both, by L0; an L0 of 0 has no place on a log axis."""
    placed = sorted((p.l0, p.value) for row in rows for p in row.points[column] if p.l0)
    return [x for x, _ in placed], [y for _, y in placed]


def _means(rows: list[Row], column: Column) -> tuple[list[float], list[float]]:
    """L0 and value of every row, each a mean over its seeds, by L0."""
    means = [(row.l0.mean, row.values[column].mean) for row in rows]
    line = sorted((x, y) for x, y in means if x and y is not None)
    return [x for x, _ in line], [y for _, y in line]


def _scale(panel: "Axes", l0s: list[float]) -> None:
    """A log axis with round numbers, wide enough for a single L0 too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.set_xscale("log")
    panel.set_xlabel("L0: active latents per token")
    low, high = (min(l0s), max(l0s)) if l0s else (1.0, 100.0)
    margin = max(1.15, (high / low) ** 0.08, 1.6 if high / low < 1.5 else 0)
    panel.set_xlim(low / margin, high * margin)
    subs = (1, 1.5, 2, 3, 4, 6, 8) if high / low < 10 else (1, 2, 5)
    panel.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _series(row: Row) -> _Series:
    return _Series(row.role, row.variant)


def _looks(rows: list[Row]) -> dict[_Series, Any]:
    """A colour per variant, a marker and line style per control: the same in every plot."""
    import seaborn as sns

    series = sorted({_series(row) for row in rows})
    variants = sorted({s.variant for s in series if s.role != "control"})
    palette = sns.color_palette("colorblind" if len(variants) <= 10 else "husl", len(variants))
    colors = dict(zip(variants, palette, strict=True))
    controls = [s.variant for s in series if s.role == "control"]
    return {
        s: CONTROL_LOOKS[controls.index(s.variant) % len(CONTROL_LOOKS)]
        if s.role == "control"
        else colors[s.variant]
        for s in series
    }


def _title(setting: Setting) -> str:
    place = plot_text(f"{setting.model}, {setting.hook_name}")
    return f"{place}\n{world_label(setting.world)}"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", plain(name), flags=re.ASCII).strip("._") or "metric"
