"""Collects the times of the races and shows them as one table at the end."""

import os

import pytest

ROWS = pytest.StashKey[list[dict]]()
TRAININGS = pytest.StashKey[list[str]]()
HEAD = ("side", "CPU ms per SAE-step: median", "min", "wall", "CPU ratio to ours")


def pytest_configure(config):
    config.stash[ROWS], config.stash[TRAININGS] = [], []
    os.environ.setdefault("TQDM_DISABLE", "1")  # SAELens's bar


@pytest.fixture
def scoreboard(request) -> list[dict]:
    """Append a dict per side."""
    return request.config.stash[ROWS]


@pytest.fixture
def trainings(request) -> list[str]:
    """Append a row of the table of whole trainings."""
    return request.config.stash[TRAININGS]


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    title = None
    for row in rows:
        new = f"{row['race']}; {row['size']}; {row['n_saes']} SAEs"
        if new != title:
            terminalreporter.write_line(f"\n{new}\n| {' | '.join(HEAD)} |\n|---|---|---|---|---|")
            title = new
        numbers = (f"{row[key]:.1f}" for key in ("cpu_ms", "min_cpu_ms", "wall_ms"))
        terminalreporter.write_line(
            f"| {row['side']} | {' | '.join(numbers)} | {row['ratio']:.2f} |"
        )
    if trainings := config.stash[TRAININGS]:
        head = ("variant", "wall s", "s for reading before", "peak MB", "of it from training")
        terminalreporter.write_line(f"\n| {' | '.join(head)} |\n|---|---|---|---|---|")
        for row in trainings:
            terminalreporter.write_line(row)
    if rows or trainings:
        load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
        terminalreporter.write_line(f"\nload average {load} on {os.cpu_count()} CPUs")
