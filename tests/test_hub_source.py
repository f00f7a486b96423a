"""The real hub is called as its libraries are written, at the pinned commit, and runs no code."""

import inspect
import json
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from datasets.exceptions import DatasetNotFoundError

from bench.config import load_config
from bench.errors import UserError
from bench.mirror import source as hub_module
from bench.mirror.pins import pin
from bench.mirror.source import HubSource
from bench.models import resolve, weights_key
from bench.needs import DataNeed
from bench.sources import Sources, active, using
from tests.fake_hub import FolderSource

NEED = DataNeed("wikitext", "test", "wikitext-2-raw-v1", ("text",))


def checked(original, answer, calls: list):
    """A stand-in that accepts only what the original accepts, and notes it."""
    signature = inspect.signature(original)

    def stand_in(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        calls.append(dict(bound.arguments))
        return answer

    return stand_in


def test_rows_are_streamed_at_the_pinned_commit_and_no_script_is_run(monkeypatch):
    calls = []
    rows = datasets.IterableDataset.from_generator(lambda: iter({"text": str(i)} for i in range(5)))
    stand_in = checked(datasets.load_dataset, rows, calls)
    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    assert list(HubSource().rows(NEED, "c0ffee", 3)) == [{"text": "3"}, {"text": "4"}]
    assert calls == [
        {
            "path": "Salesforce/wikitext",
            "name": "wikitext-2-raw-v1",
            "split": "test",
            "streaming": True,
            "revision": "c0ffee",
            "trust_remote_code": False,
        }
    ]
    list(HubSource(trust_remote_code=True).rows(NEED, "c0ffee", 0))
    assert calls[1]["trust_remote_code"] is True


def test_splits_are_asked_for_at_the_pinned_commit(monkeypatch):
    calls = []
    stand_in = checked(datasets.get_dataset_split_names, ["test"], calls)
    monkeypatch.setattr(datasets, "get_dataset_split_names", stand_in)
    assert HubSource().splits(NEED, "c0ffee") == ["test"]
    assert calls[0]["path"] == "Salesforce/wikitext"
    assert calls[0]["revision"] == "c0ffee"


def test_files_of_a_model_are_asked_for_at_the_pinned_commit(monkeypatch, tmp_path):
    calls = []
    lfs = SimpleNamespace(sha256="abc")
    info = SimpleNamespace(
        sha="c0ffee",
        siblings=[
            SimpleNamespace(rfilename="config.json", size=3, lfs=None),
            SimpleNamespace(rfilename="model.safetensors", size=9, lfs=lfs),
        ],
    )
    api = huggingface_hub.HfApi
    for name in ("model_info", "dataset_info"):
        monkeypatch.setattr(api, name, checked(getattr(api, name), info, calls))
    where = tmp_path / "config.json"
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        checked(huggingface_hub.hf_hub_download, str(where), calls),
    )
    hub = HubSource()
    assert hub.commit("model", "o/m") == hub.commit("dataset", "o/d") == "c0ffee"
    assert [tuple(f) for f in hub.model_files("o/m", "c0ffee")] == [
        ("config.json", 3, None),
        ("model.safetensors", 9, "abc"),
    ]
    assert hub.download("o/m", "c0ffee", "config.json", tmp_path) == where
    assert calls[2]["revision"] == "c0ffee" and calls[2]["files_metadata"] is True
    assert (calls[3]["revision"], calls[3]["local_dir"]) == ("c0ffee", tmp_path)


def test_the_answer_of_the_hub_has_the_fields_that_are_read():
    from huggingface_hub.hf_api import BlobLfsInfo, ModelInfo, RepoSibling

    file = RepoSibling(rfilename="a", size=1, lfs=BlobLfsInfo(size=1, sha256="x", pointer_size=1))
    assert file.lfs is not None and file.lfs.sha256 == "x"
    assert {"sha", "siblings"} <= set(ModelInfo.__annotations__)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route\nto host"), "cannot be fetched from the hub: no route to host"),
        (
            ValueError("The repository contains custom code ... `trust_remote_code=True`"),
            "is a script, .* allow it with --trust-remote-code",
        ),
        (
            DatasetNotFoundError("gated dataset on the Hub"),
            "gated dataset on the Hub; request access at https://.*bio-forget-corpus",
        ),
    ],
)
def test_a_refusal_is_one_line_with_the_way_out(monkeypatch, error, message):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=message) as refused:
        list(HubSource().rows(DataNeed("bio-forget-corpus"), "c0ffee", 0))
    assert "\n" not in str(refused.value)


def test_without_network_the_commit_is_that_of_the_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="dataset 'o/d': cannot be fetched"):
        HubSource().commit("dataset", "o/d")
    ref = tmp_path / "datasets--o--d" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("decade\n")
    assert HubSource().commit("dataset", "o/d") == "decade"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: c\nmodel: gemma-2-2b\nhook_name: blocks.1.hook_resid_post\n"
        "train: {d_sae: 8, tokens: 1000, batch_size: 100}\nvariants: [{name: relu}]\n"
        "suites: {core: {}, unlearning: {dataset_names: [wmdp-bio, human_aging]}}\n"
    )
    return load_config(path)


def test_a_run_asks_for_each_commit_once_and_records_it(config, tmp_path):
    source = FolderSource(tmp_path, {"google/gemma-2-2b": "base", "Salesforce/wikitext": "w"})
    out = tmp_path / "out"
    with using(Sources()):
        pin(config, out, tmp_path / ".cache", source)
        recorded = active().commits
        assert json.loads((out / "sources.json").read_text())["commits"] == recorded
        before = weights_key(resolve("gemma-2-2b"))
    assert active() == Sources()
    assert recorded == {
        "model/google/gemma-2-2b": "base",
        "model/google/gemma-2-2b-it": "c0ffee",
        "dataset/Skylion007/openwebtext": "c0ffee",
        "dataset/cais/wmdp": "c0ffee",
        "dataset/cais/mmlu": "c0ffee",
        "dataset/cais/wmdp-bio-forget-corpus": "c0ffee",
        "dataset/Salesforce/wikitext": "w",
    }
    with using(Sources(commits={"model/google/gemma-2-2b": "newer"})):
        assert weights_key(resolve("gemma-2-2b")) != before


def test_a_corpus_that_lies_in_the_cache_needs_no_commit(config, tmp_path):
    (tmp_path / ".cache/files/bio-forget-corpus").mkdir(parents=True)
    with using(Sources()):
        pin(config, tmp_path / "out", tmp_path / ".cache", FolderSource(tmp_path))
        assert "dataset/cais/wmdp-bio-forget-corpus" not in active().commits


def test_the_embedded_world_asks_nothing(tmp_path, monkeypatch):
    from bench.config import default_config

    monkeypatch.setattr(hub_module.HubSource, "commit", None)
    with using(Sources()):
        pin(load_config(default_config()), tmp_path, tmp_path)
        assert active().commits == {}


def test_a_model_of_the_hub_is_fetched_without_pickles_or_code(monkeypatch, tmp_path):
    from bench.model_source import folder_of

    calls = []
    stand_in = checked(huggingface_hub.snapshot_download, str(tmp_path), calls)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    with using(Sources(commits={"model/o/m": "c0ffee"})):
        assert folder_of("o/m") == tmp_path
    assert calls[0]["revision"] == "c0ffee"
    from fnmatch import fnmatch

    def is_taken(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in calls[0]["allow_patterns"])

    taken = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors"]
    assert all(map(is_taken, taken))
    assert not any(map(is_taken, ["pytorch_model.bin", "modeling.py", "weights.pt", "x.pkl"]))
