"""A mirror holds what was fetched, whole, from one commit, and says of itself when it does not."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cli import main
from bench.errors import UserError
from bench.mirror import manifest as mirror
from bench.mirror import table
from bench.mirror.fetch import fetch, wanted
from bench.mirror.manifest import Damage, verify
from bench.mirror.source import RemoteFile
from bench.mirror.status import status
from bench.needs import DataNeed, merged
from bench.requirements import ModelNeed, Needs
from tests.fake_hub import FolderSource

NANO = Path(__file__).parents[1] / "configs" / "nano.yaml"
TEXTS = DataNeed("o/texts", columns=("text",), n_chars=1_000)
MODEL = ModelNeed("m", "o/model")


def needs(*data: DataNeed, models: tuple[ModelNeed, ...] = ()) -> Needs:
    return Needs(models, data, (), {})


def write_rows(root: Path, need: DataNeed, rows: list[dict]) -> None:
    path = root / "datasets" / need.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def hub(tmp_path) -> FolderSource:
    """100 texts of 50 characters, with a column that nobody needs, and a model of three files."""
    root = tmp_path / "hub"
    write_rows(root, TEXTS, [{"text": f"{i:050}", "extra": "x" * 99} for i in range(100)])
    folder = root / "models" / "o" / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "modeling.py", "pytorch_model.bin", "README.md"):
        (folder / name).write_text(f'"{name}"')
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    return FolderSource(root)


@pytest.fixture
def go(hub, tmp_path):
    """Fetches needs into one mirror; returns what could not be brought."""
    root = tmp_path / "mirror"

    def start(what: Needs, files: dict[str, str] | None = None) -> list[str]:
        return fetch(what, root, hub, files or {}, lambda line: None)

    start.root = root  # type: ignore[attr-defined]
    return start


def rows_of(root: Path, need: DataNeed) -> list[dict]:
    return [json.loads(line) for line in (root / "datasets" / need.file).open()]


def test_a_text_is_cut_where_it_is_enough_and_has_no_column_too_many(go, hub):
    assert go(needs(TEXTS)) == []
    assert rows_of(go.root, TEXTS) == [{"text": f"{i:050}"} for i in range(20)]
    assert hub.rows_given == 20  # no more was downloaded either


def test_a_model_is_data_only_and_checked(go, hub):
    assert go(needs(models=(MODEL,))) == []
    folder = go.root / "models" / "o" / "model"
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    entry = mirror.read(go.root).model("o/model")
    assert entry is not None and entry.commit == "c0ffee"
    assert entry.files["models/o/model/model.safetensors"].size == 700


def test_nothing_is_fetched_twice(go, hub):
    go(needs(TEXTS, models=(MODEL,)))
    before = (hub.rows_given, list(hub.downloads))
    assert go(needs(TEXTS, models=(MODEL,))) == []
    assert (hub.rows_given, hub.downloads) == before


def test_a_file_that_is_lost_is_fetched_again_and_only_it(go, hub):
    go(needs(models=(MODEL,)))
    hub.downloads.clear()
    (go.root / "models/o/model/tokenizer.json").unlink()
    assert go(needs(models=(MODEL,))) == []
    assert hub.downloads == ["tokenizer.json"]
    assert list(verify(go.root)) == []


def test_a_text_that_broke_off_goes_on_from_its_last_note(go, hub, monkeypatch):
    monkeypatch.setattr(table, "ROWS_PER_NOTE", 4)
    hub.stop_after = 10
    (problem,) = go(needs(TEXTS))
    assert "network is gone" in problem
    assert not (go.root / "datasets" / TEXTS.file).exists()  # half a file has no name
    hub.stop_after = None
    assert go(needs(TEXTS)) == []
    assert hub.rows_given == 10 + 20 - 8  # the 8 rows of the last note were not read again
    assert rows_of(go.root, TEXTS) == [{"text": f"{i:050}"} for i in range(20)]
    assert not (go.root / mirror.UNFINISHED).exists()


def test_what_broke_off_at_another_commit_is_not_gone_on_from(go, hub, monkeypatch):
    monkeypatch.setattr(table, "ROWS_PER_NOTE", 4)
    hub.stop_after = 10
    go(needs(TEXTS))
    hub.stop_after, hub.commits = None, {"o/texts": "decade"}
    assert go(needs(TEXTS)) == []
    assert hub.rows_given == 10 + 20


def test_one_thing_that_fails_does_not_stop_the_others(go):
    problems = go(needs(DataNeed("o/none"), TEXTS, models=(ModelNeed("n", "o/none"), MODEL)))
    assert problems == [
        "model 'o/none': is not on the hub",
        "dataset 'o/none': is not on the hub",
    ]
    assert [i.state for i in status(needs(TEXTS, models=(MODEL,)), go.root)] == ["ok", "ok"]


def test_the_splits_of_a_data_set_come_from_one_commit(go, hub):
    test = replace(TEXTS, split="test", n_chars=None, n_rows=1)
    write_rows(hub.root, test, [{"text": "t"}])
    go(needs(TEXTS))
    hub.commits["o/texts"] = "beef"  # the hub moved on
    go(needs(TEXTS, test))
    assert {commit for _, commit in hub.asked} == {"c0ffee"}


def test_every_split_is_found_where_a_suite_names_only_the_data_set(go, hub):
    write_rows(hub.root, replace(TEXTS, split="test"), [{"text": "t"}])
    whole = DataNeed("o/texts", split=None)
    assert go(needs(whole)) == []
    assert len(rows_of(go.root, TEXTS)) == 100
    assert [i.what for i in status(needs(whole), go.root)] == [
        "data o/texts, test",
        "data o/texts, train",
    ]


def test_more_than_there_is_is_fetched_anew_and_less_is_there(go, hub):
    go(needs(TEXTS))
    less, more = replace(TEXTS, n_chars=500), replace(TEXTS, n_chars=2_000)
    assert [i.state for i in status(needs(less), go.root)] == ["ok"]
    assert [i.state for i in status(needs(more), go.root)] == ["too little"]
    go(needs(more))
    assert len(rows_of(go.root, TEXTS)) == 40
    other_column = replace(TEXTS, columns=("text", "extra"))
    assert [i.state for i in status(needs(other_column), go.root)] == ["too little"]


def test_a_text_that_ends_before_its_bound_is_all_there_is(go):
    endless = replace(TEXTS, n_chars=10**9)
    assert go(needs(endless)) == []
    assert [i.state for i in status(needs(endless), go.root)] == ["ok"]


def test_groups_are_read_until_each_is_full_and_keep_the_order(go, hub):
    code = DataNeed(
        "o/code",
        columns=("code", "language"),
        groups=("C", "Java"),
        group_by="language",
        n_per_group=2,
        longer_than=3,
    )
    languages = ["C", "PHP", "C", "C", "Java", "C", "Java", "C"]
    rows = [{"code": "long", "language": name} for name in languages]
    rows.insert(0, {"code": "no", "language": "Java"})  # too short to count, but read
    write_rows(hub.root, code, rows)
    assert go(needs(code)) == []
    assert [r["language"] for r in rows_of(go.root, code)] == [
        *("Java", "C", "C", "C", "Java", "C", "Java")
    ]
    (problem,) = go(needs(replace(code, n_per_group=9)))
    assert "too few rows, C has 5, Java has 2, 9 needed" in problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ("text", "label")}, "has no column 'label', but text, extra"),
        ({"path": "o/../../escaped"}, "leads outside"),
    ],
)
def test_what_cannot_be_written_is_named(go, hub, change, message):
    need = replace(TEXTS, **change)
    write_rows(hub.root, need, [{"text": "x", "extra": 1}])
    (problem,) = go(needs(need))
    assert message in problem


def test_a_download_that_is_not_what_the_hub_has_is_refused(go, hub, monkeypatch):
    original = hub.download

    def cut(hub_id, commit, name, into):
        path = original(hub_id, commit, name, into)
        if name == "model.safetensors":
            path.write_bytes(b"weightz" * 100)
        return path

    monkeypatch.setattr(hub, "download", cut)
    (problem,) = go(needs(models=(MODEL,)))
    assert "model.safetensors did not arrive whole" in problem
    assert [i.state for i in status(needs(models=(MODEL,)), go.root)] == ["incomplete"]
    monkeypatch.undo()
    assert go(needs(models=(MODEL,))) == []


def test_a_model_of_pickles_is_refused():
    files = [RemoteFile(n, 1, None) for n in ("config.json", "pytorch_model.bin")]
    with pytest.raises(UserError, match=r"only pytorch_model\.bin, a pickle, which is never"):
        wanted(files, "o/m")


def test_sharded_weights_and_a_sentencepiece_tokenizer_are_taken():
    names = ["config.json", "tokenizer.model", "model.safetensors.index.json"]
    names += [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    others = ["original/consolidated.safetensors", "consolidated.safetensors", ".gitattributes"]
    files = [RemoteFile(n, 1, None) for n in names + others]
    assert sorted(f.name for f in wanted(files, "o/m")) == sorted(names)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_that_the_user_has_needs_no_hub(go, hub, tmp_path, suffix):
    need = DataNeed("bio-forget-corpus", columns=("text",))
    rows = [{"title": "t", "text": "one"}, {"title": "u", "text": "two"}]
    path = tmp_path / f"bio-forget-corpus{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert go(needs(need), {"bio-forget-corpus": str(path)}) == []
    assert rows_of(go.root, need) == [{"text": "one"}, {"text": "two"}]
    assert hub.asked == []
    assert go(needs(need)) == []  # and not asked for again


def test_verify_names_each_damaged_file(go):
    go(needs(TEXTS, models=(MODEL,)))
    assert list(verify(go.root)) == []
    text, folder = go.root / "datasets" / TEXTS.file, go.root / "models/o/model"
    raw = text.read_bytes()
    text.write_bytes(raw.replace(b"1", b"2", 1))
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"cut")
    (folder / "evil.bin").write_bytes(b"new")
    found = {damage.file: damage.problem for damage in verify(go.root)}
    assert set(found) == {
        "datasets/o/texts/train.jsonl",
        "models/o/model/config.json",
        "models/o/model/model.safetensors",
        "models/o/model/evil.bin",
    }
    assert found["models/o/model/config.json"] == "is missing"
    assert found["models/o/model/model.safetensors"] == "has 3 bytes instead of 700"
    assert "sha256" in found["datasets/o/texts/train.jsonl"]
    assert found["models/o/model/evil.bin"] == "is not in the manifest"


@settings(deadline=None)
@given(at=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
def test_any_flipped_bit_of_any_file_is_found(tmp_path_factory, at, flip):
    root = tmp_path_factory.mktemp("mirror")
    path = root / "datasets" / "a" / "train.jsonl"
    path.parent.mkdir(parents=True)
    raw = bytearray(b'{"text": "one"}\n{"text": "two"}\n')
    path.write_bytes(raw)
    name = path.relative_to(root).as_posix()
    entry = mirror.Entry("dataset", "a", "c", {name: mirror.record(path)}, is_complete=True)
    mirror.write(root, mirror.Manifest().with_entry("datasets/a/train", entry))
    raw[at % len(raw)] ^= flip
    path.write_bytes(raw)
    assert [damage.file for damage in verify(root)] == [name]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "datasets/../../outside"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    record = {"size": 1, "sha256": "0"}
    entry = {"kind": "model", "hub_id": "a", "commit": "c", "files": {name: record}}
    raw = {"schema": 1, "entries": {"models/a": entry}}
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="leads outside"):
        list(verify(tmp_path))


def test_a_link_out_of_the_mirror_is_refused(go, tmp_path):
    go(needs(TEXTS))
    (tmp_path / "elsewhere.jsonl").write_text("{}\n")
    text = go.root / "datasets" / TEXTS.file
    text.unlink()
    os.symlink(tmp_path / "elsewhere.jsonl", text)
    with pytest.raises(UserError, match="leads outside"):
        list(verify(go.root))


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99}', '{"schema": 1, "entries": 3}'])
def test_a_broken_manifest_is_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        mirror.read(tmp_path)


bounds = st.fixed_dictionaries(
    {
        "n_rows": st.none() | st.integers(1, 9),
        "n_chars": st.none() | st.integers(1, 9),
        "columns": st.sampled_from([(), ("a",), ("a", "b"), ("b",)]),
    }
)


@settings(deadline=None)
@given(one=bounds, other=bounds)
def test_two_needs_of_a_file_become_one_that_covers_both(one, other):
    first, second = DataNeed("p", **one), DataNeed("p", **other)
    (both,) = merged([first, second])
    assert both.covers(first) and both.covers(second)
    assert merged([both, both]) == (both,)


def test_damage_is_told_by_the_command(go):
    go(needs(TEXTS))
    whole = CliRunner().invoke(main, ["data", "verify", str(go.root)])
    assert (whole.exit_code, "whole" in whole.output) == (0, True)
    (go.root / "datasets" / TEXTS.file).write_text("")
    broken = CliRunner().invoke(main, ["data", "verify", str(go.root)])
    assert broken.exit_code == 1
    assert "datasets/o/texts/train.jsonl: has 0 bytes" in broken.output
    assert list(verify(go.root)) == [
        Damage("datasets/o/texts/train.jsonl", "has 0 bytes instead of 1260")
    ]


def test_a_config_that_needs_nothing_makes_a_mirror_all_the_same(tmp_path):
    config, root = str(NANO), tmp_path / "mirror"
    fetched = CliRunner().invoke(main, ["data", "fetch", config, "--mirror", str(root)])
    assert fetched.exit_code == 0 and "nothing to fetch" in fetched.output
    asked = CliRunner().invoke(main, ["data", "status", config, "--mirror", str(root)])
    assert asked.exit_code == 0 and "nothing is needed" in asked.output
    assert list(verify(root)) == []


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_mirror_that_cannot_be_made_is_one_line(tmp_path, below):
    (tmp_path / "file").touch()
    root = str(tmp_path / "file" / below)
    done = CliRunner().invoke(main, ["data", "fetch", str(NANO), "--mirror", root])
    assert done.exit_code == 2 and f"error: mirror={root!r}: " in done.output
