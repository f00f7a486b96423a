"""Nothing from elsewhere is run: no pickles, no code beside data, no path out of a folder."""

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config import SaelensConfig
from bench.errors import UserError
from bench.importer import import_path
from bench.result import STORE, load_run
from bench.saelens_import import label_of, load
from tests.test_importer import core

ROOT = Path(__file__).parents[1]
SOURCES = [p for d in ("bench", "suites", "variants", "report") for p in (ROOT / d).rglob("*.py")]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
OWN_PICKLES = {"bench/unlearning/reference.py"}
"""Reads what sae_bench wrote into this run's own folder a moment before; it writes nothing else."""


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """(dotted name, keywords) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield (
                ast.unparse(node.func),
                {k.arg: k.value for k in node.keywords if k.arg is not None},
            )


def unsafe(source: str) -> list[str]:
    """What in a source file may run what comes from elsewhere."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            found.append(str(node.module))
    for name, keywords in calls(tree):
        last = name.rpartition(".")[2]
        constant = {k: v.value for k, v in keywords.items() if isinstance(v, ast.Constant)}
        if name == "torch.load" and constant.get("weights_only") is not True:
            found.append(name)
        if last in ("load", "loadtxt") and constant.get("allow_pickle"):
            found.append(f"{name} of pickles")
        if last in ("read_pickle", "unsafe_load", "full_load") or name in ("eval", "exec"):
            found.append(name)
        if constant.get("trust_remote_code") is True:
            found.append(f"{name} trusts remote code")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled_and_no_remote_code_is_trusted(path):
    found = unsafe(path.read_text(encoding="utf-8"))
    if path.relative_to(ROOT).as_posix() in OWN_PICKLES:
        found = [name for name in found if name != "pickle"]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "eval(text)",
        "yaml.unsafe_load(text)",
        "load_dataset(name, trust_remote_code=True)",
    ],
)
def test_the_rule_sees_every_form(line):
    assert unsafe(line) != []


@pytest.mark.parametrize(
    "line",
    ["torch.load(path, weights_only=True)", "model.eval()", "f(trust_remote_code=flag)"],
)
def test_the_rule_lets_safe_forms_pass(line):
    assert unsafe(line) == []


def test_an_sae_folder_of_pickles_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'was-run'}",))

    import pickle

    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "sae_weights.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"sae_weights\.pt is a pickle, which is never loaded"):
        load(SaelensConfig(path=str(tmp_path)))
    (tmp_path / "sae_weights.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        load(SaelensConfig(path=str(tmp_path)))
    assert not (tmp_path / "was-run").exists()


paths = st.sampled_from(
    ["..", ".", "", "../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "~/x", "-rf", "\0"]
) | st.text(max_size=300)


@settings(deadline=None)
@given(paths)
def test_the_folder_of_an_imported_sae_lies_in_the_run(name):
    label = label_of(SaelensConfig(release="r", sae_id=name, label=name or None))
    folder = Path("/run/saes")
    assert (folder / label).resolve().parent == folder
    assert not label.startswith((".", "-"))
    assert 0 < len(f"{label}.csv".encode()) <= 255


def test_long_names_that_differ_stay_different():
    one, other = (label_of(SaelensConfig(path="x", label="a" * 300 + end)) for end in "bc")
    assert one != other


def files_below(folder: Path) -> set[Path]:
    return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}


@settings(deadline=None, max_examples=50)
@given(name=paths, sae=paths)
def test_nothing_in_an_imported_result_chooses_where_it_is_written(tmp_path_factory, name, sae):
    top = tmp_path_factory.mktemp("import")
    raw = core() | {"sae_lens_release_id": name, "sae_lens_id": sae, "eval_id": name}
    (top / "in.json").write_text(json.dumps(raw))
    run = top / "results" / "run"
    try:
        import_path(top / "in.json", run)
    except UserError:
        assert files_below(top) == {Path("in.json")}
        return
    written = files_below(top) - {Path("in.json")}
    (cell,) = load_run(run).cells
    assert written == {
        Path("results/run/cells.json"),
        Path(f"results/{STORE}/{cell.cell_key}/cell.json"),
    }
    assert set(cell.cell_key) <= set("0123456789abcdef")


def test_a_link_out_of_an_imported_folder_is_not_followed(tmp_path):
    (tmp_path / "secret.json").write_text(json.dumps(core()))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match="holds no result"):
        import_path(folder, tmp_path / "run")


@pytest.mark.parametrize("path", ["../outside", "/outside", "run/../../outside", "link"])
def test_a_run_folder_from_elsewhere_reads_nothing_outside(tmp_path, path):
    results, outside = tmp_path / "results", tmp_path / "outside"
    import_path(_one(tmp_path), results / "run")
    (store,) = (results / STORE).iterdir()
    store.rename(outside)
    (results / "link").symlink_to(outside)
    manifest = results / "run" / "cells.json"
    raw = json.loads(manifest.read_text())
    for holder in (raw, raw.get("content", {})):
        for entry in holder.get("cells", []):
            entry["path"] = path
    raw.pop("checksum", None)
    manifest.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="leads outside"):
        load_run(results / "run")


def _one(tmp_path: Path) -> Path:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(core()))
    return path
