"""Who may import whom; a new arrow between folders has to be drawn here first."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"bench", "variants", "suites", "report"}
MAY_IMPORT = {
    "bench.py": {"bench.cli"},
    "bench": {"bench"},
    "variants": {"bench.variant", "bench.ops"},
    "suites": {
        "bench.suite",
        "bench.context",
        "bench.ops",
        "bench.word_deletion",
        "bench.limits",
        "bench.moments",
        "bench.counters",
        "bench.fast",
        "bench.absorption",
        "bench.unlearning",
    },
    "report": {"report", "bench.result", "bench.validity", "bench.errors", "bench.files"},
}
EXCEPTIONS = {"bench/cli.py": {"report"}}
ONLY_IN = {
    "click": {"bench/cli.py"},
    "ray": {"bench/executor.py"},
    "pandas": {"report"},
    "seaborn": {"report"},
    "matplotlib": {"report"},
    "plotly": {"report"},
}
"""Heavy or interface packages, and where alone they may be imported."""
INSIDE_FUNCTIONS = {"sae_bench", "ray"}
"""Packages whose import takes seconds, so never at the top of a module."""
NEVER = {"report": {"torch", "transformer_lens", "sae_lens", "sae_bench", "transformers"}}


def sources() -> list[Path]:
    return [ROOT / "bench.py", *(p for d in sorted(OURS) for p in sorted((ROOT / d).rglob("*.py")))]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            assert node.module
            # `from bench import ops` may mean the module bench.ops
            yield from (
                f"{node.module}.{a.name}" if node.module == "bench" else node.module
                for a in node.names
            )


def is_within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    here = path.relative_to(ROOT).as_posix()
    folder = here.split("/")[0]
    tree = ast.parse(path.read_text())
    allowed = MAY_IMPORT[folder] | EXCEPTIONS.get(here, set())
    for name in imported(tree):
        top = name.split(".")[0]
        if top in OURS:
            assert is_within(name, allowed), f"{here} must not import {name}"
        assert top not in NEVER.get(folder, set()), f"{here} must not import {name}"
        if top in ONLY_IN:
            assert {here, folder} & ONLY_IN[top], f"only {ONLY_IN[top]} may import {name}"
    at_top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    slow = {name.split(".")[0] for name in imported(at_top)} & INSIDE_FUNCTIONS
    assert not slow, f"{here} imports {slow} at the top"


@pytest.mark.parametrize(
    ("folder", "line", "is_allowed"),
    [
        ("variants", "from bench.ops import mse", True),
        ("variants", "from bench import ops", True),
        ("variants", "from variants.topk import TopK", False),
        ("variants", "from bench import registry", False),
        ("suites", "import bench.train", False),
        ("bench", "from report.build import build_report", False),
    ],
)
def test_the_rule_sees_every_form_of_import(folder, line, is_allowed):
    (name,) = imported(ast.parse(line))
    assert is_within(name, MAY_IMPORT[folder]) is is_allowed
