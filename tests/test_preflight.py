"""What would fail after hours is refused in seconds, everything at once."""

import os
import shutil
from dataclasses import replace

import pytest

from bench import models, preflight
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.doctor import hours, packages
from bench.doctor import plugins as doctor_plugins
from bench.errors import UserError
from tests import tiny
from tests.samples import VARIANT

CONFIG = RunConfig(
    name="mine",
    model="nano",
    hook_name="blocks.2.hook_resid_post",
    train=TrainConfig(d_sae=64, tokens=10_000),
    variants=(VariantConfig("mine"),),
)
SIDED = """
    from bench.suite import Suite
    from bench.variant import NoConfig
    class Chat(Suite):
        \"\"\"Needs the instruct model.\"\"\"
        Config = NoConfig
        metrics = ()
        side = "instruct"
        def run(self, ctx, saes): yield from ()
"""


@pytest.fixture
def config(plugins, monkeypatch):
    """CONFIG with a variant and a suite of its own, on tiny models that are there."""
    plugins("variants/mine.py", VARIANT)
    plugins("suites/chat.py", SIDED)
    plugins("suites/plain.py", SIDED.replace('"instruct"', '"base"').replace("Chat", "Plain"))
    specs = {spec.name: spec for spec in tiny.pair()}
    specs["alone"] = replace(specs["nano"], name="alone", instruct=None)
    specs["gone"] = replace(specs["nano"], name="gone", source=str(tiny.folder() / "none"))
    monkeypatch.setattr(models, "MODELS", specs)
    for part in ((doctor_plugins, "rehearsals"), (hours, "checks"), (packages, "checks")):
        monkeypatch.setattr(*part, lambda subject: [])  # of a variant that is none
    return CONFIG


@pytest.fixture
def problems(config, tmp_path):
    """The complaints of preflight about CONFIG with changes."""

    def complain(**changes) -> str:
        out = changes.pop("out", tmp_path / "run")
        try:
            preflight.check(replace(config, **changes), out)
        except UserError as error:
            return str(error)
        return ""

    return complain


def test_a_good_run_passes(problems):
    assert problems(suites={"chat": {}}) == ""


def test_missing_model_files_name_the_command_that_makes_them(problems):
    assert "make it with `nano build`" in problems(model="gone")


def test_a_suite_for_chat_needs_an_instruct_sibling(problems):
    found = problems(model="alone", suites={"chat": {}})
    assert found.startswith("suites.chat: model='alone': has no instruct sibling")
    assert problems(model="alone") == ""


def test_a_full_disk_is_seen_before_the_work(problems, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "1.0 GB free, needs 2.1 GB" in problems()


def test_a_run_folder_below_a_file_is_refused(problems, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in problems(out=tmp_path / "file" / "run")


def test_a_run_folder_whose_name_no_file_system_takes_is_refused(problems, tmp_path):
    # some complain when they look for it, others only when they make it
    out = str(tmp_path / ("x" * 300))
    assert problems(out=tmp_path / ("x" * 300)).startswith(f"out={out!r}: ")


@pytest.mark.parametrize("name", ["run", "."], ids=["made", "there"])
def test_a_folder_that_may_not_be_written_to_is_refused(problems, tmp_path, monkeypatch, name):
    def is_allowed(path, mode):  # root may write anywhere
        return path != tmp_path

    monkeypatch.setattr(os, "access", is_allowed)
    assert f"{tmp_path} may not be written to; fix: " in problems(out=tmp_path / name)


def test_settings_that_the_plugin_refuses_are_refused(problems, plugins):
    check = (
        "def __post_init__(self):\n                raise ValueError('k is odd')\n\n        knob ="
    )
    plugins("variants/picky.py", VARIANT.replace("knob =", f"    {check}"))
    found = problems(variants=(VariantConfig("picky", {"k": 3}),))
    assert found == "variants[0].config: k is odd"


def test_a_suite_without_metrics_is_refused(problems, plugins):
    plugins("suites/bare.py", SIDED.replace('"instruct"', '"base"').replace("metrics = ()", ""))
    assert problems(suites={"bare": {}}) == "suite 'bare': does not declare `metrics`"


def test_a_device_that_is_not_there_is_refused(problems):
    assert "this machine has" in problems(device="cuda:99")


def test_all_problems_are_told_at_once(problems):
    found = problems(model="gone", device="cuda:99")
    assert "nano build" in found and "cuda:99" in found and "\n" not in found


def test_a_suite_that_cannot_run_is_left_out_on_request(config, tmp_path):
    mixed = replace(config, model="alone", suites={"chat": {}, "plain": {}})
    with pytest.raises(UserError, match="the other suites can run: --skip-unavailable"):
        preflight.check(mixed, tmp_path / "run")
    left_out = preflight.check(mixed, tmp_path / "run", skip_unavailable=True)
    assert list(left_out) == ["chat"] and "no instruct sibling" in left_out["chat"]
    assert list(preflight.without(mixed, left_out).suites) == ["plain"]


def test_a_run_of_nothing_but_left_out_suites_is_refused(config, tmp_path):
    chat = replace(config, model="alone", suites={"chat": {}})
    with pytest.raises(UserError, match="no instruct sibling"):
        preflight.check(chat, tmp_path / "run", skip_unavailable=True)


def test_what_the_whole_run_needs_is_never_left_out(config, tmp_path):
    both = replace(config, model="gone", suites={"chat": {}, "plain": {}})
    with pytest.raises(UserError, match="nano build"):
        preflight.check(both, tmp_path / "run", skip_unavailable=True)
