"""From run folders to everything a reader gets: tables, leaderboard, plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.files import write_atomic
from bench.result import load_run
from bench.validity import judge
from report.leaderboard import leaderboard_table, render_markdown, render_terminal
from report.plots import draw_plots
from report.summary import summarise
from report.table import results_table, units_table, write_table


class ReportFiles(NamedTuple):
    """Where the report lies, and the leaderboard as text."""

    results: Path
    units: Path
    leaderboard: Path
    leaderboard_csv: Path
    plots: list[Path]
    terminal: str


def build_report(run_dirs: Sequence[Path], out: Path) -> ReportFiles:
    """Write results.csv, units.csv, leaderboard.md, leaderboard.csv and plots/*.png into `out`.

    Degenerate SAEs are marked in every suite. Raises UserError where a run cannot be read.
    """
    folders = dict.fromkeys(path.resolve() for path in run_dirs)
    runs = [run._replace(cells=tuple(judge(run.cells))) for run in map(load_run, folders)]
    summary = summarise(runs)
    files = ReportFiles(
        results=out / "results.csv",
        units=out / "units.csv",
        leaderboard=out / "leaderboard.md",
        leaderboard_csv=out / "leaderboard.csv",
        plots=draw_plots(summary, out / "plots"),
        terminal=render_terminal(summary),
    )
    write_table(results_table(runs), files.results)
    write_table(units_table(runs), files.units)
    write_atomic(files.leaderboard, render_markdown(summary))
    write_table(leaderboard_table(summary), files.leaderboard_csv)
    return files
