"""Whatever is edited, exactly the cells that depend on it get another key, and no other is lost.

Every field of the config is gone through: a new one fails here until it is said what it changes.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench import models, plan, roster
from bench.checkpoint import Record, save_record
from bench.config import (
    OPTIMISER,
    WITHOUT_EFFECT,
    ControlConfig,
    RunConfig,
    TrainConfig,
    VariantConfig,
    load_config,
)
from bench.datasets import RemoteHub
from bench.keys import content_key, versions
from bench.models import ModelSpec
from bench.needs import HUB_IDS
from bench.requirements import needs_of, revisions
from bench.result import SaeInfo
from bench.sources import Sources

ROOT = Path(__file__).parents[1]
HOOK = "blocks.1.hook_resid_post"
VARIANT = '''
from dataclasses import dataclass
from bench.variant import Knob, Variant

class {name}(Variant):
    """A variant."""

    @dataclass(frozen=True)
    class Config:
        k: int = 8

    knob = Knob("k", raises_l0=True, native=True)
'''
SUITE = '''
from dataclasses import dataclass
from bench.suite import Metric, Suite

class {name}(Suite):
    """A suite."""

    @dataclass(frozen=True)
    class Config:
        n: int = 1
        text: str = ""

    metrics = (Metric("score", "higher", headline=True),)
    side = "{side}"
    engines = {engines}
'''
CONFIG = RunConfig(
    name="mine",
    model="toy",
    hook_name=HOOK,
    train=TrainConfig(d_sae=32, tokens=2_000, batch_size=256, context_size=32),
    variants=(VariantConfig("one", {"k": 4}), VariantConfig("two", {"k": 4})),
    controls=(ControlConfig("random", 4.0),),
    suites={"base": {}, "chat": {}},
)
EVERY = {(sae, suite) for sae in ("one", "two", "random") for suite in ("base", "chat")}
TRAINED = {cell for cell in EVERY if cell[0] != "random"}
BASE = {cell for cell in EVERY if cell[1] == "base"}
CHAT = EVERY - BASE

Keys = dict[tuple[str, str], str]


@pytest.fixture
def world(plugins, tmp_path, monkeypatch):
    """Two variants and two suites of their own, a pair of models, and the keys of all cells."""
    plugins("variants/one.py", VARIANT.format(name="One"))
    plugins("variants/two.py", VARIANT.format(name="Two"))
    both = ("reference", "fast")
    plugins("suites/base.py", SUITE.format(name="Base", side="base", engines=both))
    plugins("suites/chat.py", SUITE.format(name="Chat", side="instruct", engines=both[:1]))
    for name in ("toy", "toy-it", "toy2", "toy2-it"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    pair = {
        "toy": ModelSpec("toy", "real", str(tmp_path / "toy"), "base", 3, 8, "toy-it"),
        "toy-it": ModelSpec("toy-it", "real", str(tmp_path / "toy-it"), "instruct", 3, 8),
        "toy2-it": ModelSpec("toy2-it", "real", str(tmp_path / "toy2-it"), "instruct", 3, 8),
        "toy2": ModelSpec("toy2", "real", str(tmp_path / "toy2"), "base", 3, 8, "toy-it"),
    }
    monkeypatch.setattr(models, "MODELS", pair)

    class World:
        path = tmp_path
        write = staticmethod(plugins)

        def keys(self, config: RunConfig = CONFIG, revision: str = "rev") -> Keys:
            """Variant or control, and suite -> key, with weights that follow from the SAE's key."""
            spec = models.resolve(config.model, config.instruct)
            out = tmp_path / "results" / config.name
            folders = []
            for entry in roster.roster(config, spec, revision):
                info = SaeInfo(entry.label, entry.role, "v", "real", spec.name, HOOK, 8, 32)
                weights = content_key(entry.key)
                record = Record(info, entry.key, entry.source, "text", 32, 1, 1.0, weights=weights)
                folders.append(out / "saes" / entry.label)
                save_record(folders[-1], record)
            states = dict.fromkeys(config.suites, revision)
            cells = plan.plan_cells(config, spec, states, folders, out)
            return {(c.sae.label.partition("_")[0], c.suite): c.key for c in cells}

    return World()


def changed(before: Keys, after: Keys) -> set[tuple[str, str]]:
    assert before.keys() == after.keys()
    return {cell for cell in before if before[cell] != after[cell]}


def test_nothing_changes_by_itself(world):
    assert changed(world.keys(), world.keys()) == set()


def test_every_cell_has_a_key_of_its_own(world):
    assert len(set(world.keys().values())) == len(EVERY)


@pytest.mark.parametrize(
    ("path", "source", "cells"),
    [
        ("variants/one.py", VARIANT.format(name="One"), {("one", "base"), ("one", "chat")}),
        ("suites/base.py", SUITE.format(name="Base", side="base", engines=("fast",)), BASE),
        ("suites/chat.py", SUITE.format(name="Chat", side="instruct", engines=("fast",)), CHAT),
    ],
)
def test_an_edited_plugin_changes_its_own_cells(world, path, source, cells):
    before = world.keys()
    world.write(path, source + "\n# edited")
    assert changed(before, world.keys()) == cells


@pytest.mark.parametrize(("model", "cells"), [("toy", EVERY), ("toy-it", CHAT)])
def test_other_weights_of_a_model_change_what_runs_on_it(world, model, cells):
    before = world.keys()
    (world.path / model / "weights").write_text("fine-tuned")
    assert changed(before, world.keys()) == cells


def test_another_data_revision_changes_everything(world):
    assert changed(world.keys(), world.keys(revision="another")) == EVERY


def test_another_package_changes_everything(world, monkeypatch):
    before = world.keys()
    for module in (plan, roster):
        monkeypatch.setattr(module, "versions", lambda: versions() | {"torch": "0.0"})
    assert changed(before, world.keys()) == EVERY


def test_an_edited_trainer_or_worker_changes_everything(world, monkeypatch):
    for module, name in ((roster, "TRAINER"), (plan, "WORKER")):
        before = world.keys()
        edited = world.path / "edited.py"
        edited.write_text(getattr(module, name).read_text() + "\n# edited")
        monkeypatch.setattr(module, name, edited)
        assert changed(before, world.keys()) == EVERY


def test_an_edited_data_file_changes_the_suite_that_names_it(world):
    text = world.path / "forget.jsonl"
    text.write_text("one")
    config = replace(CONFIG, suites={"base": {}, "chat": {"text": str(text)}})
    before = world.keys(config)
    text.write_text("two")
    assert changed(before, world.keys(config)) == CHAT


def test_an_edited_training_text_changes_everything(world):
    text = world.path / "train.txt"
    text.write_text("one")
    config = replace(CONFIG, train=replace(CONFIG.train, dataset=str(text)))
    before = world.keys(config)
    text.write_text("two")
    assert changed(before, world.keys(config)) == EVERY


TRAIN_EDITS: dict[str, Any] = {
    "betas": (0.8, 0.99),
    "dataset": "another/text",
    "text_column": "body",
    "sink_norm": 9.0,
    "log_to": ("wandb",),
}
"""Fields that are no number; of the others the value is halved."""


@pytest.mark.parametrize("name", [f.name for f in fields(TrainConfig)])
def test_each_setting_of_the_training_changes_what_it_should(world, name):
    value = TRAIN_EDITS.get(name) or type(getattr(CONFIG.train, name))(
        getattr(CONFIG.train, name) / 2
    )
    after = world.keys(replace(CONFIG, train=replace(CONFIG.train, **{name: value})))
    known = {field: set() for field in WITHOUT_EFFECT} | dict.fromkeys(OPTIMISER, TRAINED)
    assert changed(world.keys(), after) == known.get(name, EVERY)


EDITS: dict[str, tuple[Any, set[tuple[str, str]]]] = {
    "name": ("yours", set()),
    "model": ("toy2", EVERY),
    "instruct": ("toy2-it", CHAT),
    "hook_name": ("blocks.2.hook_resid_post", EVERY),
    "data_seed": (1, EVERY),
    "eval_seed": (1, EVERY),
    "seeds": ((5,), EVERY),
    "engine": ("reference", BASE),
    "device": ("mps", EVERY),
    "dtype": ("bfloat16", EVERY),
    "workers": (1, set()),
    "d_in": (8, set()),
    "activation_cache_gb": (1.0, set()),
    "eval_cache_gb": (1.0, set()),
    "cell_timeout_s": (1.0, set()),
    "mirror": ("somewhere", set()),
    "trust_remote_code": (True, set()),
    "variants": (
        (VariantConfig("one", {"k": 5}), CONFIG.variants[1]),
        {("one", "base"), ("one", "chat")},
    ),
    "controls": ((ControlConfig("random", 5.0),), EVERY - TRAINED),
    "suites": ({"base": {"n": 2}, "chat": {}}, BASE),
}
ELSEWHERE = {"train", "saelens"}
"""Tested above, or in the tests of what is imported."""


@pytest.mark.parametrize("name", sorted({f.name for f in fields(RunConfig)} - ELSEWHERE))
def test_each_setting_of_the_run_changes_what_it_should(world, name):
    value, cells = EDITS[name]
    changes: dict[str, Any] = {name: value}
    assert changed(world.keys(), world.keys(replace(CONFIG, **changes))) == cells


@pytest.mark.parametrize(
    "more",
    [
        lambda c: replace(c, seeds=(0, 1)),
        lambda c: replace(c, variants=(VariantConfig("two", {"k": 9}), *c.variants)),
        lambda c: replace(c, controls=(ControlConfig("mean"), *c.controls)),
    ],
)
def test_what_is_added_leaves_all_others_as_they_are(world, more: Callable[[RunConfig], RunConfig]):
    before = set(world.keys().values())
    config = more(CONFIG)
    spec = models.resolve("toy")
    labels = [entry.label for entry in roster.roster(config, spec, "rev")]
    assert len(labels) == len(set(labels)) > len(CONFIG.variants) + len(CONFIG.controls)
    keys = {entry.key for entry in roster.roster(config, spec, "rev")}
    assert {entry.key for entry in roster.roster(CONFIG, spec, "rev")} < keys
    assert set(world.keys().values()) == before


def test_the_place_of_the_run_folder_is_no_content(world, tmp_path: Path):
    assert set(world.keys(replace(CONFIG, name="elsewhere")).values()) == set(world.keys().values())


def test_a_suite_is_keyed_by_its_own_data(tmp_path):
    config = load_config(ROOT / "configs" / "gemma-2-2b.yaml")
    paths = {need.path for need in needs_of(config).data}
    commits = {f"dataset/{HUB_IDS.get(path, path)}": "1" for path in paths}
    (tmp_path / "files" / "bio-forget-corpus").mkdir(parents=True)

    def states(chosen: RunConfig, **changes: str) -> dict[str, str]:
        known = commits | {f"dataset/{path}": commit for path, commit in changes.items()}
        return revisions(chosen, RemoteHub(tmp_path / "files", Sources(commits=known)))

    every = states(config)
    alone = replace(config, suites={"core": config.suites["core"]})
    assert states(alone) == {"core": every["core"]}
    later = states(config, **{"cais/mmlu": "2"})
    assert {suite for suite in every if every[suite] != later[suite]} == {"unlearning"}
