"""A variant and a suite in a package of their own: found, checked, trained and scored as ours are.

The package in fixtures/sae_soft is not installed by pip here, which takes a minute; the folder of
metadata that pip would write is made beside it. Nothing of this repository knows its name.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import datasets, models, registry
from bench.check.kit import check
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.errors import UserError
from bench.keys import source_key
from bench.result import Cell
from bench.run import run
from tests import tiny

ROOT = Path(__file__).parents[1]
PACKAGE = Path(__file__).parent / "fixtures" / "sae_soft"


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder of installed packages, on the path of this process and of those it starts."""
    folder = tmp_path / "site"
    install(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "sae_soft"]:
        del sys.modules[name]


def install(folder: Path) -> None:
    """What `pip install --target` leaves behind."""
    shutil.copytree(PACKAGE / "sae_soft", folder / "sae_soft")
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    name = project["name"].replace("-", "_")
    info = folder / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"].items()
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in p.items()) for g, p in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))


def test_an_installed_package_is_found_without_being_imported(site):
    assert "soft" in registry.names("variants") and "row_overlap" in registry.names("suites")
    plugin = registry.describe("variants", "soft")
    assert plugin.path == site / "sae_soft" / "variant.py"
    assert plugin.summary == "ReLU SAE with a saturating penalty, from a package of its own."
    assert plugin.fields is not None and [f.name for f in plugin.fields] == ["weight", "width"]
    assert not [n for n in sys.modules if n.startswith("sae_soft")]


def test_the_list_of_another_process_shows_it(site):
    done = subprocess.run(
        [sys.executable, ROOT / "bench.py", "list", "variants", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "soft" in [row["name"] for row in json.loads(done.stdout)]


def test_it_passes_the_conformance_kit(site):
    report = check("soft", quick=True)
    assert report.is_ok, "\n".join(report.lines())


def test_an_edit_of_a_module_that_it_imports_changes_its_key(site):
    path = registry.describe("variants", "soft").path
    before = source_key(path)
    helper = site / "sae_soft" / "penalties.py"
    helper.write_text(helper.read_text() + "# edited")
    assert source_key(path) != before


def test_it_is_trained_and_scored_by_its_own_suite(site, tmp_path, monkeypatch):
    base, instruct = tiny.pair()
    monkeypatch.setattr(models, "MODELS", {"nano": base, "nano-it": instruct})
    monkeypatch.setattr(datasets, "hub_for", lambda *args: datasets.LocalHub(tiny.data()))
    config = RunConfig(
        name="soft",
        model="nano",
        hook_name=tiny.HOOK,
        train=TrainConfig(
            d_sae=32, tokens=2_000, batch_size=256, context_size=32, heldout_tokens=256
        ),
        variants=(VariantConfig("soft"),),
        suites={"row_overlap": {}},
    )
    (cell,) = run(config, tmp_path / "results" / "soft", lambda *args: None)
    assert isinstance(cell, Cell) and cell.state == "ok", cell.detail
    assert cell.sae.variant == "soft" and cell.metrics[0].name == "row_overlap"


def test_a_name_that_two_places_claim_is_refused_and_the_others_stay(site, monkeypatch):
    (site / "sae_soft" / "topk.py").write_text((site / "sae_soft" / "variant.py").read_text())
    points = site / "sae_soft-0.1.dist-info" / "entry_points.txt"
    points.write_text("[sae_verdict.variants]\ntopk = sae_soft.topk\nlost = sae_soft.gone\n")
    registry._packaged.cache_clear()
    with pytest.raises(UserError, match="'topk': is defined twice, rename one: .*topk.py, .*site"):
        registry.describe("variants", "topk")
    with pytest.raises(UserError, match="lost = 'sae_soft.gone' of sae-soft: there is no module"):
        registry.load("variants", "lost")
    assert set(registry.problems("variants")) == {"topk", "lost"}
    assert registry.describe("variants", "relu").summary
    registry._packaged.cache_clear()


def test_a_plugin_file_works_in_the_processes_of_the_suites(tmp_path, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "")
    registry.add_file(PACKAGE / "sae_soft" / "suite.py")
    code = "from bench import registry; print(registry.load('suites', 'suite').__name__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "RowOverlap", done.stderr
