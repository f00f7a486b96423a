"""Every check of the doctor has an input that it fails, and nothing is asked that may not be."""

import json
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bench import cli, memory, model_files, models, sources
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.doctor import data, hub, machine, packages, pair, tokens
from bench.doctor import plugins as settings
from bench.doctor.report import Check, Diagnosis
from bench.doctor.subject import Subject
from bench.models import resolve
from bench.shapes import shape_of
from tests import tiny

CONFIG = RunConfig(
    name="mine",
    model="nano",
    hook_name=tiny.HOOK,
    train=TrainConfig(d_sae=64, tokens=10_000),
    variants=(VariantConfig("topk", {"k": 4}),),
    suites={"core": {}, "unlearning": {}},
)


@pytest.fixture
def subject(monkeypatch, tmp_path):
    """CONFIG with changes, on the tiny pair."""
    specs = {spec.name: spec for spec in tiny.pair()}
    monkeypatch.setattr(models, "MODELS", models.MODELS | specs)
    return lambda **changes: Subject(replace(CONFIG, **changes), tmp_path / "run")


def states(checks) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def failed(checks) -> list[Check]:
    return [check for check in checks if check.state == "fail"]


def test_a_good_pair_passes(subject):
    found = states(pair.checks(subject()))
    assert found == dict.fromkeys(("model nano", "hook", "model nano-it", "pair"), "pass")


def test_models_that_are_not_here_are_all_named_without_a_question(subject, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", None)  # not even called
    gemma = subject(model="gemma-2-2b", hook_name="blocks.12.hook_resid_post")
    found = {c.name: c for c in pair.checks(gemma)}
    assert found["model gemma-2-2b"].state == found["model gemma-2-2b-it"].state == "fail"
    assert found["model gemma-2-2b"].suites == ()
    assert found["model gemma-2-2b-it"].suites == ("unlearning",)
    assert "data fetch" in found["model gemma-2-2b"].fix
    assert found["hook"].state == "pass" and found["pair"].state == "skip"


def test_data_that_are_not_here_are_all_named(subject):
    gemma = subject(model="gemma-2-2b", hook_name="blocks.12.hook_resid_post")
    found = {c.name: c for c in data.checks(gemma)}
    assert {c.state for c in found.values()} == {"fail"}
    assert found["data Skylion007/openwebtext"].suites == ()  # it is trained on, too
    assert found["data cais/wmdp"].suites == ("unlearning",)
    corpus = found["data bio-forget-corpus"]
    assert "request access" in corpus.fix
    assert "bio-forget-corpus.jsonl or bio-forget-corpus.parquet" in corpus.fix


def test_data_of_a_suite_that_has_no_model_are_not_asked_for(subject):
    pythia = subject(model="pythia-70m-deduped", hook_name="blocks.3.hook_resid_post")
    assert "data cais/wmdp" not in states(data.checks(pythia))


def test_nanos_data_are_embedded(subject):
    assert states(data.checks(subject())) == {"data": "pass"}


def test_the_data_of_the_nano_world_are_known():
    files = [path.relative_to(tiny.data()).as_posix() for path in tiny.data().rglob("*.jsonl")]
    assert {name for name in data.EMBEDDED if any(f.startswith(f"{name}/") for f in files)} == set(
        data.EMBEDDED
    )
    assert all(any(f.startswith(f"{name}/") for name in data.EMBEDDED) for f in files)


@pytest.mark.parametrize(
    ("changes", "says", "suites"),
    [
        ({"train": TrainConfig(64, 10_000, dataset="nope")}, "train.dataset: 'nope' is not in", ()),
        ({"suites": {"core": {"dataset": "nope"}}}, "suites.core: 'nope' is not in", ("core",)),
        (
            {"suites": {"unlearning": {"forget": "x.csv"}}},
            "suites.unlearning: 'x.csv' is not in the nano world",
            ("unlearning",),
        ),
        (
            {"suites": {"sparse_probing": {"probe_test_set_size": 200}}},
            "suites.sparse_probing.probe_train_set_size=4000: the nano world has 400 texts",
            ("sparse_probing",),
        ),
    ],
)
def test_what_the_nano_world_does_not_have_is_told(subject, changes, says, suites):
    (check,) = data.checks(subject(**changes))
    assert check.state == "fail" and check.message.startswith(says) and check.suites == suites


def test_a_corpus_that_the_config_names_must_exist(subject, tmp_path):
    path = tmp_path / "bio-forget-corpus.parquet"
    own = subject(suites={"unlearning": {"forget": str(path)}})
    (check,) = data.local_files(own, "unlearning")
    assert check.state == "fail" and check.suites == ("unlearning",)
    assert check in list(data.checks(own))  # in the nano world, too
    path.write_bytes(b"PAR1")
    assert states(data.local_files(own, "unlearning")) == {f"data {path.name}": "pass"}


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        ("there", "pass", "will be fetched"),
        ("gated", "fail", "accept the terms at https://huggingface.co/some/model"),
        ("absent", "fail", "the hub has no model"),
        ("ReadTimeout", "warn", "did not answer"),
    ],
)
def test_the_hubs_answer_is_told(monkeypatch, answer, state, words):
    monkeypatch.setattr(model_files, "is_offline", lambda: False)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(hub, "asked", lambda repo, kind: answer)
    check = hub.remote("model x", "weights missing", "some/model", "model", ())
    assert check.state == state and words in f"{check.message} {check.fix}"


def test_a_hub_that_cannot_be_reached_is_not_asked(monkeypatch):
    def refuse(address, timeout):
        assert timeout <= hub.TIMEOUT_S
        raise TimeoutError

    monkeypatch.setattr(model_files, "is_offline", lambda: False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(hub, "asked", None)
    hub.is_reachable.cache_clear()
    check = hub.remote("model x", "weights missing", "some/model", "model", ())
    hub.is_reachable.cache_clear()
    assert check.state == "fail" and "cannot be reached" in check.message


def test_the_words_position_is_found_where_it_is_wrong():
    cfg = SimpleNamespace(prompt_template="{word} has the first letter:", prompt_token_pos=-6)
    assert tokens.word_position("absorption", cfg, tiny.tokenizer()).state == "pass"
    cfg.prompt_token_pos = -5
    wrong = tokens.word_position("absorption", cfg, tiny.tokenizer())
    assert wrong.state == "fail" and wrong.suites == ("absorption",)
    assert "' has'" in wrong.message and wrong.fix == "`prompt_token_pos: -6`"


@pytest.mark.parametrize(
    "template", ["{letter}", "{}", "{word", "{word!z}", "{word.x}", "{word:d}"]
)
def test_a_template_that_takes_no_word_is_told(template):
    cfg = SimpleNamespace(prompt_template=template, prompt_token_pos=-6)
    check = tokens.word_position("absorption", cfg, tiny.tokenizer())
    assert check.state == "fail" and "{word}" in check.fix
    assert check.message.startswith(f"suites.absorption.prompt_template={template!r}: ")


def test_a_chat_template_that_asks_nothing_is_refused():
    check = tokens.chat_prompt(("unlearning",), tiny.tokenizer())
    assert check.state == "pass"
    silent = SimpleNamespace(chat_template=None, name_or_path="silent")
    assert tokens.chat_prompt(("unlearning",), silent).state == "fail"


def test_more_latents_than_memory_are_refused_with_both_numbers(subject, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 24 * 10**9)
    gemma = {"model": "gemma-2-2b", "hook_name": "blocks.12.hook_resid_post", "dtype": "bfloat16"}
    train = TrainConfig(d_sae=16_384, tokens=10**9)
    assert machine.ram(subject(train=train, **gemma)).state == "pass"
    large = machine.ram(subject(train=replace(train, d_sae=2**20), **gemma))
    assert large.message.startswith("train.d_sae=1048576: 1 SAEs at once beside model 'gemma-2-2b'")
    assert large.state == "fail" and "cpu has 24.0 GB free" in large.message


def test_memory_that_cannot_be_told_is_no_reason_to_refuse(subject, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: None)
    assert machine.ram(subject()).state == "skip"


def test_a_requirement_that_is_not_met_names_its_command(monkeypatch):
    monkeypatch.setattr(packages, "_required", lambda: ["numpy>=99", "no-such-package>=1"])
    one, other = failed(packages.versions())
    assert one.fix == "pip install 'numpy>=99'" and "nothing is installed" in other.message


def test_a_torchvision_that_cannot_load_is_treated_as_absent():
    assert packages.torchvision().state == "pass"


def test_settings_of_a_suite_are_made_once(subject):
    suites = {"core": {}, "unlearning": {"seq_len": 128}}
    found = states(settings.suites(subject(suites=suites)))
    assert found == {"suite core": "pass", "suite unlearning": "pass"}


@pytest.mark.parametrize(
    ("suite", "field", "model"),
    [
        ("core", "context_size", "nano"),
        ("sparse_probing", "context_length", "nano"),
        ("unlearning", "seq_len", "nano-it"),
    ],
)
def test_a_suite_reads_no_longer_contexts_than_its_model(subject, suite, field, model):
    n_ctx = shape_of(resolve(model)).n_ctx
    (long,) = settings.suites(subject(suites={suite: {field: n_ctx + 1}}))
    told = f"suites.{suite}.{field}={n_ctx + 1}: exceeds the {n_ctx} of model {model!r}"
    assert (long.state, long.message, long.fix) == ("fail", told, "lower it")
    (fits,) = settings.suites(subject(suites={suite: {field: n_ctx}}))
    assert fits.state == "pass"


def test_settings_that_differ_in_the_knob_alone_are_rehearsed_once(subject, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "bench.check.kit.preflight_problems", lambda name, cfg, cache: seen.append(cfg) or iter(())
    )
    several = tuple(VariantConfig("relu", {"l1": l1}) for l1 in (0.01, 0.02))
    list(settings.rehearsals(subject(variants=(*several, VariantConfig("topk")))))
    assert seen == [{"l1": 0.01}, {}]


def test_a_diagnosis_says_what_blocks_whom():
    whole, part = Check("a", "fail", "no model"), Check("b", "fail", "no data", "get it", ("x",))
    found = Diagnosis("mine", (whole, part, Check("c", "pass", "good")), 1.25)
    assert found.unavailable() == {"x": "no data; fix: get it"}
    assert found.blocking(["x", "y"], skip_unavailable=True) == ["no model"]
    assert found.blocking(["x", "y"], skip_unavailable=False) == [
        "no model",
        "suites.x: no data; fix: get it",
    ]
    named = Diagnosis("mine", (part._replace(message="suites.x.size=3: too large", fix=""),), 1.0)
    assert named.blocking(["x"], skip_unavailable=False) == ["suites.x.size=3: too large"]
    assert found.lines()[-1] == "doctor mine: 2 fail, 1 pass in 1.2 s"


def test_the_command_prints_json_and_its_status_says_it(monkeypatch, tmp_path):
    check = Check("model", "fail", "missing", "fetch it")
    monkeypatch.setattr(
        "bench.doctor.examine.examine", lambda config, out: Diagnosis(config.name, (check,), 0.1)
    )
    done = CliRunner().invoke(cli.main, ["doctor", "--json"])
    found = json.loads(done.output)
    assert done.exit_code == cli.SOME_CELL_FAILED and found["ok"] is False
    assert found["checks"][0] == {
        "name": "model",
        "state": "fail",
        "message": "missing",
        "fix": "fetch it",
        "suites": [],
    }


def test_the_mirror_is_asked_and_not_the_hub(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "remote", None)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with sources.using(sources.Sources(mirror=str(mirror))):
        gemma = subject(model="gemma-2-2b", hook_name="blocks.12.hook_resid_post")
        models_found = failed(pair.checks(gemma))
        data_found = failed(data.checks(gemma))
    assert resolve("gemma-2-2b").source == "google/gemma-2-2b"
    assert [c.name for c in models_found] == ["model gemma-2-2b", "model gemma-2-2b-it"]
    assert all(str(mirror) in c.message for c in [*models_found, *data_found])
    assert {c.name for c in data_found} >= {"data cais/mmlu", "data bio-forget-corpus"}
