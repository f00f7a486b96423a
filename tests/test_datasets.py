"""Data sets from a folder look as from the hub; nothing is fetched, nothing is stale."""

import json

import pytest

from bench import datasets
from bench.datasets import LocalHub, RemoteHub
from bench.errors import UserError
from bench.models import resolve
from bench.sources import Sources, using


def write(root, name, rows):
    path = root / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def hub(tmp_path):
    write(tmp_path, "a/news/train", [{"text": "x", "label": 0}, {"text": "y", "label": 1}])
    write(tmp_path, "a/news/test", [{"text": "z", "label": 1}])
    write(tmp_path, "cais/mmlu/history/test", [{"question": "q", "choices": ["1", "2"]}])
    code = [{"code": c, "language": c} for c in ("C", "Java", "PHP")]
    write(tmp_path, "codeparrot/github-code/train", code)
    return LocalHub(tmp_path)


def test_no_split_gives_a_dict_of_all(hub):
    loaded = hub.load_dataset("a/news")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 2, "test": 1}


def test_a_split_gives_rows_with_random_access(hub):
    loaded = hub.load_dataset("a/news", split="train")
    assert loaded[1] == {"text": "y", "label": 1}


def test_a_config_is_a_folder(hub):
    assert hub.load_dataset("cais/mmlu", "history", split="test")[0]["choices"] == ["1", "2"]


def test_streaming_can_be_shuffled_and_read_twice(hub):
    loaded = hub.load_dataset("a/news", split="train", streaming=True, trust_remote_code=True)
    shuffled = loaded.shuffle(seed=1, buffer_size=1)
    assert sorted(row["text"] for row in shuffled) == ["x", "y"]
    assert len(list(shuffled)) == 2
    with pytest.raises(TypeError):
        len(loaded)


def test_languages_filters_rows(hub):
    options = {"streaming": True, "trust_remote_code": True, "languages": ["C", "PHP"]}
    rows = hub.load_dataset("codeparrot/github-code", split="train", **options)
    assert [row["language"] for row in rows] == ["C", "PHP"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a/news", None, "validation"), r"dataset 'a/news': split 'validation' needs .*a/news"),
        (("b/none", None, None), r"dataset 'b/none': needs .*b/none/<split>\.jsonl"),
        (("cais/mmlu", "physics", "test"), r"'cais/mmlu/physics'.*physics/test\.jsonl"),
    ],
)
def test_a_missing_file_names_the_data_set_and_the_file(hub, arguments, message):
    with pytest.raises(UserError, match=message):
        hub.load_dataset(*arguments)


def test_an_option_that_would_be_ignored_is_refused(hub):
    with pytest.raises(TypeError, match="revision"):
        hub.load_dataset("a/news", split="train", revision="main")


def test_the_revision_follows_content_and_names(hub, tmp_path):
    before = hub.revision
    assert LocalHub(tmp_path).revision == before
    write(tmp_path, "a/news/test", [{"text": "w", "label": 1}])
    changed = hub.revision
    (tmp_path / "a/news/test.jsonl").rename(tmp_path / "a/news/validation.jsonl")
    assert len({before, changed, hub.revision}) == 3


def test_nano_data_are_written_once(tmp_path, monkeypatch):
    calls = []

    def write_datasets(root):
        calls.append(root)
        write(root, "a/news/train", [{"text": "x"}])

    monkeypatch.setattr("bench.nano.data.write_datasets", write_datasets)
    first = datasets.hub_for(resolve("nano"), tmp_path / "cache")
    second = datasets.hub_for(resolve("nano-it"), tmp_path / "cache")
    assert first.file("a/news", "train") == second.file("a/news", "train")
    assert len(calls) == 1
    assert not calls[0].exists()  # written elsewhere, then moved


def test_nano_data_cut_short_leave_nothing(tmp_path, monkeypatch):
    def write_datasets(root):
        write(root, "a/news/train", [{"text": "x"}])
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.nano.data.write_datasets", write_datasets)
    with pytest.raises(KeyboardInterrupt):
        datasets.hub_for(resolve("nano"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_real_model_reads_the_hub_and_only_gated_files_from_disk(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: seen.append((a, k)) or "rows")
    with using(Sources(commits={"dataset/a/news": "c0ffee"})):
        hub = datasets.hub_for(resolve("gemma-2-2b"), tmp_path)
    assert hub.load_dataset("a/news", split="train", trust_remote_code=True) == "rows"
    options = {"split": "train", "streaming": False, "revision": "c0ffee"}
    assert seen == [(("a/news", None), options | {"trust_remote_code": False})]
    with pytest.raises(UserError, match="request access at .*bio-forget-corpus"):
        hub.file("bio-forget-corpus", "train")
    write(tmp_path / "files", "bio-forget-corpus/train", [{"text": "x"}])
    assert hub.file("bio-forget-corpus", "train").is_file()
    assert hub.load_dataset("bio-forget-corpus", split="train")[0] == {"text": "x"}


def test_what_nobody_declared_is_not_read_from_the_hub(tmp_path):
    hub = RemoteHub(tmp_path, Sources())
    with pytest.raises(UserError, match=r"'a/news': no commit .* `datasets` or `data\(\)`"):
        hub.load_dataset("a/news", split="train")


def test_the_revision_of_the_hub_is_that_of_its_commits(tmp_path):
    def revision(commits: dict[str, str], *paths: str) -> str:
        hub = RemoteHub(tmp_path, Sources(commits=commits))
        return hub.revision_of(paths) if paths else hub.revision

    a, b, model = {"dataset/a": "1"}, {"dataset/b": "1"}, {"model/a": "1"}
    assert revision(a) == revision(a | model) != revision({"dataset/a": "2"})
    assert revision(a | b) != revision(a)
    assert revision(a | b, "a") == revision(a, "a")
    write(tmp_path, "a/train", [{"text": "x"}])  # a file of the user's stands for it
    assert revision(a) != revision(b)


def test_the_revision_of_some_data_sets_follows_only_them(hub, tmp_path):
    before = hub.revision_of(["a/news"]), hub.revision_of(["cais/mmlu"])
    write(tmp_path, "cais/mmlu/history/test", [{"question": "other"}])
    assert hub.revision_of(["a/news"]) == before[0]
    assert hub.revision_of(["cais/mmlu"]) != before[1]
