"""Training text from files, a mirror and the hub; what cannot be read is refused in one line."""

import json

import pytest
from tiny import data

from bench.config import TrainConfig
from bench.datasets import LocalHub, RemoteHub
from bench.errors import UserError
from bench.sources import Sources
from bench.texts import Text, text_key, text_revision, text_source

TEXTS = ["The first one.\nHas two lines.", "Ein zweiter: äöü", "third"]


def source(dataset, hub=None, **settings):
    train = TrainConfig(d_sae=8, tokens=2048, dataset=str(dataset), **settings)
    return text_source(train, hub or LocalHub(data()))


@pytest.fixture
def files(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.txt").write_text("\n\n" + "\n\n \n".join(TEXTS) + "\n", encoding="utf-8")
    rows = [{"text": text, "n": i, "content_id": "c" * i} for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_local_file_gives_its_documents_every_time(files, name):
    found = source(files / name)
    assert [t.text for t in found.open()] == TEXTS
    assert [t.text for t in found.open()] == TEXTS
    assert found.n_bytes == (files / name).stat().st_size


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_may_say_which_texts_say_the_same(files, name):
    assert [t.content_id for t in source(files / name).open()] == ["", "c", "cc"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("body", "train.text_column='body' is not among text, n"),
        ("n", "train.text_column='n' must hold text, has 0"),
    ],
)
def test_the_column_must_hold_text(files, name, column, message):
    with pytest.raises(UserError, match=message):
        list(source(files / name, text_column=column).open())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.jsonl", b'{"text": "a"}\n{"text"\n', "line 2: is not JSON"),
        ("b.jsonl", b'["text"]\n', "line 1: must be a JSON object, is list"),
        ("b.parquet", b"no parquet at all", "cannot be read as parquet"),
        ("b.txt", b"\xff\xfe\xfa", "is not UTF-8 text"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        list(source(tmp_path / name).open())
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused_before_it_is_read(tmp_path):
    with pytest.raises(UserError, match=r"none.jsonl': there is no such file"):
        source(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="there is no such file"):
        text_key(str(tmp_path / "none.jsonl"))


def test_the_key_of_a_file_follows_its_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = text_key(str(path))
    path.write_text("two")
    assert before != text_key(str(path)) is not None
    assert text_key("Skylion007/openwebtext") is None


def test_what_else_a_run_reads_does_not_change_the_revision_of_its_text(tmp_path):
    def revision(dataset: str, **commits: str) -> str:
        known = {f"dataset/{name}": commit for name, commit in commits.items()}
        train = TrainConfig(d_sae=8, tokens=100, dataset=dataset)
        return text_revision(train, RemoteHub(tmp_path, Sources(commits=known)))

    assert revision("text", text="1") == revision("text", text="1", questions="1")
    assert revision("text", text="1") != revision("text", text="2")
    path = tmp_path / "own.txt"
    path.write_text("one")
    assert revision(str(path)) == text_key(str(path))


def test_nano_text_knows_its_paraphrases():
    found = source("Skylion007/openwebtext")
    texts = list(found.open())
    assert len(texts) == 400 and isinstance(texts[0], Text)
    named = [t.content_id for t in texts if t.content_id]
    assert max(named.count(c) for c in named) == 2
    assert found.n_bytes is not None and found.n_bytes > sum(len(t.text) for t in texts)


def test_a_data_set_that_the_hub_does_not_have_is_one_line(tmp_path):
    hub = RemoteHub(tmp_path, Sources(commits={"dataset/nobody/no-such-data-set": "c0ffee"}))
    missing = source("nobody/no-such-data-set", hub)
    assert missing.n_bytes is None
    with pytest.raises(UserError, match="train.dataset='nobody/no-such-data-set'") as refused:
        next(missing.open())
    assert "\n" not in str(refused.value)


def test_text_of_the_hub_is_streamed(tmp_path, monkeypatch):
    import datasets

    def load(path, name, *, split, streaming, trust_remote_code, revision):
        assert (path, name, split, streaming) == ("owner/texts", None, "train", True)
        assert (trust_remote_code, revision) == (False, "c0ffee")
        return iter([{"body": "a", "content_id": "x"}, {"body": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = RemoteHub(tmp_path, Sources(commits={"dataset/owner/texts": "c0ffee"}))
    texts = source("owner/texts", hub, text_column="body").open()
    # a column of that name may mean anything on the hub
    assert list(texts) == [Text("a"), Text("b")]
