"""Every headline metric against L0, one PNG each and all of a setting in one overview."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
CONTROL_MARKERS = ("X", "s", "^", "v", "P", "*")
CONTROL_STYLES = ("--", ":", "-.")


def draw_plots(summary: Summary, folder: Path) -> list[Path]:
    """Write the PNGs into `folder`, in place of those of an earlier report; their paths.

    A metric that no SAE has a value for has no plot; the leaderboard says why.
    """
    import seaborn as sns

    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    paths = []
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", font_scale=0.9):
        for i, setting in enumerate(summary.settings):
            rows = [row for row in summary.rows if row.setting == setting]
            columns = [c for c in summary.columns_of(setting) if any(r.points.get(c) for r in rows)]
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
    colors = _colors(rows)
    for panel, column in zip(panels, columns, strict=False):
        _draw(panel, column, rows, colors)
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


def _draw(panel: "Axes", column: Column, rows: list[Row], colors: dict[str, Any]) -> None:
    shown = [row for row in rows if row.points.get(column)]
    for variant in dict.fromkeys(row.variant for row in shown if row.role == "trained"):
        _draw_trained(panel, column, _of(shown, "trained", variant), colors[variant])
    for i, variant in enumerate(dict.fromkeys(r.variant for r in shown if r.role == "control")):
        _draw_control(panel, column, _of(shown, "control", variant), i)
    for variant in dict.fromkeys(row.variant for row in shown if row.role == "imported"):
        _draw_imported(panel, column, _of(shown, "imported", variant), colors[variant])
    better = DIRECTIONS.get(column.direction)
    panel.set_ylabel(plot_text(column.metric) + (f"\n({better})" if better else ""))
    panel.set_title(plot_text(column.suite), loc="left", fontweight="bold")
    _scale(panel, [p.l0 for row in shown for p in row.points[column] if p.l0])


def _draw_trained(panel: "Axes", column: Column, rows: list[Row], color: Any) -> None:
    """A point per SAE, and a line through the means over seeds."""
    import seaborn as sns

    points = [p for row in rows for p in row.points[column] if p.l0]
    sns.scatterplot(
        x=[p.l0 for p in points], y=[p.value for p in points], color=color, alpha=0.6, ax=panel
    )
    means = [(row.l0.mean, row.values[column].mean) for row in rows]
    line = sorted((x, y) for x, y in means if x and y is not None)
    label = plot_text(rows[0].variant)
    panel.plot([x for x, _ in line], [y for _, y in line], color=color, label=label, zorder=3)


def _draw_control(panel: "Axes", column: Column, rows: list[Row], i: int) -> None:
    """Markers at its own L0; a line across where it has none, as for the mean."""
    label = plot_text(f"{rows[0].variant} (control)")
    points = sorted(p for row in rows for p in row.points[column] if p.l0)
    style = CONTROL_STYLES[i % len(CONTROL_STYLES)]
    if points:
        panel.plot(
            [p.l0 for p in points],
            [p.value for p in points],
            color=CONTROL_COLOR,
            linestyle=style,
            marker=CONTROL_MARKERS[i % len(CONTROL_MARKERS)],
            linewidth=1,
            label=label,
        )
    for value in {p.value for row in rows for p in row.points[column] if not p.l0}:
        panel.axhline(value, color=CONTROL_COLOR, linestyle=style, linewidth=1.2, label=label)


def _draw_imported(panel: "Axes", column: Column, rows: list[Row], color: Any) -> None:
    points = [p for row in rows for p in row.points[column] if p.l0]
    panel.scatter(
        [p.l0 for p in points],
        [p.value for p in points],
        color=color,
        marker="D",
        edgecolor="white",
        label=plot_text(f"{rows[0].variant} (imported)"),
    )


def _scale(panel: "Axes", l0s: list[float]) -> None:
    """A log axis with round numbers, wide enough for a single L0 too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.set_xscale("log")
    panel.set_xlabel("L0: active latents per token")
    low, high = (min(l0s), max(l0s)) if l0s else (1.0, 100.0)
    margin = max(1.15, (high / low) ** 0.08, 1.6 if high / low < 1.5 else 0)
    panel.set_xlim(low / margin, high * margin)
    n_decades = max(1.0, high / low) ** 0.5
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 4, 6) if n_decades < 30 else (1,)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _of(rows: Iterable[Row], role: str, variant: str) -> list[Row]:
    return [row for row in rows if row.role == role and row.variant == variant]


def _colors(rows: list[Row]) -> dict[str, Any]:
    """The same colour for a variant in every plot of a setting."""
    import seaborn as sns

    variants = sorted({row.variant for row in rows if row.role != "control"})
    palette: Callable[..., list[Any]] = sns.color_palette
    name = "colorblind" if len(variants) <= 10 else "husl"
    return dict(zip(variants, palette(name, len(variants)), strict=True))


def _title(setting: Setting) -> str:
    place = plot_text(f"{setting.model}, {setting.hook_name}")
    return f"{place}\n{world_label(setting.world)}"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", plain(name), flags=re.ASCII).strip("._") or "metric"
