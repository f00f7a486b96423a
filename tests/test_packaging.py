"""What gets installed is complete, declared and pinned."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import bench

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OFFLINE = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
PACKAGES = ("bench", "variants", "suites", "report", "configs")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()  # type: ignore[index]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pins}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """File names in a wheel built from a copy of the tracked and new files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(source), f"--wheel-dir={out}", *OFFLINE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("sae_verdict-*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_every_module_and_data_file(wheel):
    wanted = [
        p.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for p in (ROOT / name).rglob("*")
        if p.suffix in {".py", ".yaml"} or "weights" in p.parts
        if p.is_file() and "__pycache__" not in p.parts
    ]
    assert "configs/nano.yaml" in wanted
    assert set(wanted) <= set(wheel)


def test_the_wheel_puts_nothing_else_at_the_top_level(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == set(PACKAGES)


def test_the_version_is_stated_once():
    assert PROJECT["version"] == bench.__version__


def test_every_import_is_a_declared_requirement():
    optional = PROJECT["optional-dependencies"]["loggers"]  # imported where they are asked for
    declared = {normal(r) for r in [*PROJECT["dependencies"], *optional]}
    owners = packages_distributions()
    for path in (p for name in PACKAGES for p in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                tops = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                tops = {node.module.split(".")[0]}
            else:
                continue
            for top in tops - set(sys.stdlib_module_names) - set(PACKAGES):
                names = {normal(owner) for owner in owners.get(top, [top])}
                assert names & declared, f"{path.relative_to(ROOT)} imports {top}: {names}"


def test_every_requirement_is_pinned_within_its_range():
    specifiers = pytest.importorskip("packaging.requirements")
    pins = constraints()
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = specifiers.Requirement(text)
        pin = pins[normal(requirement.name)]
        assert requirement.specifier.contains(pin), f"{text} excludes {pin}"


def test_no_pin_belongs_to_one_machine_only():
    for name, version in constraints().items():
        assert "+" not in version, f"{name}=={version}: a local version is not on an index"
        assert not name.startswith(("nvidia", "cuda", "triton")), f"{name} depends on the GPU"


def test_ci_runs_the_test_command_of_the_readme():
    command = "python -m pip install tox && python -m tox\n"
    assert command in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().endswith(command)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_formatter_is_the_same_everywhere():
    pin = constraints()["ruff"]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==([\d.]+)", hooks)) == {pin}
