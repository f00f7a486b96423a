"""A key changes with everything that can change a result, and with nothing else."""

from dataclasses import fields, replace

import pytest

from bench import keys
from bench.keys import CellContent, source_key

CONTENT = CellContent(
    sae={"weights": "a", "k": 8},
    suite="core",
    suite_config={"n": 1, "m": 2},
    sources=("s", "v"),
    data_revision="d",
    model="m",
    versions={"torch": "2.13.0"},
    eval_seed=42,
    engine="reference",
    device="cpu",
    dtype="float32",
)
OTHER = {
    "sae": {"weights": "b", "k": 8},
    "suite_config": {"n": 1, "m": 3},
    "sources": ("s", "w"),
    "versions": {"torch": "2.13.1"},
    "eval_seed": 43,
}


@pytest.mark.parametrize("name", [f.name for f in fields(CellContent)])
def test_every_part_of_the_content_changes_the_key(name):
    assert replace(CONTENT, **{name: OTHER.get(name, "other")}).key() != CONTENT.key()


def test_the_order_of_settings_does_not_change_the_key():
    assert replace(CONTENT, suite_config={"m": 2, "n": 1}).key() == CONTENT.key()


def test_the_key_is_the_same_in_another_process():
    # printf '{"a":null,"b":[1,2.5]}' | sha256sum; Python's hash() would differ by process
    assert keys.content_key({"b": [1, 2.5], "a": None}) == "e57f5d37865437a82e1108ba"


def test_what_json_does_not_know_has_no_key():
    with pytest.raises((TypeError, ValueError)):
        keys.content_key({"path": object()})
    with pytest.raises(ValueError, match="JSON"):
        keys.content_key({"loss": float("nan")})


def test_a_source_key_covers_what_the_source_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "suites").mkdir()
    suite = tmp_path / "suites" / "one.py"
    suite.write_text("import torch\ndef f():\n    from bench.context import x\n")
    (tmp_path / "bench" / "context.py").write_text("from bench import models")
    models, unrelated = tmp_path / "bench" / "models.py", tmp_path / "bench" / "cli.py"
    models.write_text("from bench import context")  # a circle must end
    unrelated.write_text("")

    first = keys.source_key(suite)
    unrelated.write_text("x = 1")
    assert keys.source_key(suite) == first
    models.write_text("from bench import context\nx = 1")
    assert keys.source_key(suite) != first


def test_a_folder_key_covers_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w.bin").write_bytes(b"1")
    first = keys.folder_key(tmp_path)
    (tmp_path / "a" / "w.bin").write_bytes(b"2")
    assert keys.folder_key(tmp_path) != first
    (tmp_path / "a" / "w.bin").rename(tmp_path / "a" / "v.bin")
    with pytest.raises(FileNotFoundError):
        keys.folder_key(tmp_path / "none")


def test_an_edit_in_the_package_of_a_plugin_changes_its_key(tmp_path):
    package = tmp_path / "theirs"
    (package / "inner").mkdir(parents=True)
    for folder in (package, package / "inner"):
        (folder / "__init__.py").touch()
    texts = {
        "idea.py": "from theirs.losses import loss\nfrom .inner import tools",
        "losses.py": "loss = 1",
        "inner/tools.py": "from ..last import x",
        "last.py": "x = 1",
        "unused.py": "",
    }
    for name, text in texts.items():
        (package / name).write_text(text)
    before = source_key(package / "idea.py")
    for name in ("losses.py", "inner/tools.py", "last.py"):
        (package / name).write_text(texts[name] + "  # edited")
        assert source_key(package / "idea.py") != before, name
        (package / name).write_text(texts[name])
    (package / "unused.py").write_text("# edited")
    assert source_key(package / "idea.py") == before
