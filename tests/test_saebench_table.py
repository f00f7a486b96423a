"""The table in docs/sae-bench.md: 32 rows, whose tests and places in sae_bench exist."""

import ast
import importlib.metadata
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\d+) \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/sae-bench.md").read_text())


@cache
def names_in(file: str) -> set[str]:
    """Names of the tests of a file of tests/."""
    nodes = ast.parse((ROOT / "tests" / file).read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_there_is_a_row_for_every_trap_of_this_version():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 33))
    assert importlib.metadata.version("sae-bench") == "0.6.0"


@pytest.mark.parametrize("row", ROWS, ids=[number for number, *_ in ROWS])
def test_each_row_names_tests_and_places_that_exist(row):
    _, theirs, ours, shown = row
    names = re.findall(r"`([^`]+)`", shown)
    assert names and ours
    for name in names:
        file, _, test = name.partition("::")
        assert test in names_in(file), name
    spec = find_spec("sae_bench")  # nothing of it is imported
    assert spec and spec.submodule_search_locations
    places = re.findall(r"`([\w/]+\.py):(\d+)`", theirs)
    assert places
    for file, line in places:
        source = Path(spec.submodule_search_locations[0]) / file
        lines = source.read_text().splitlines()
        assert lines[int(line) - 1].strip(), f"{file}:{line}"
