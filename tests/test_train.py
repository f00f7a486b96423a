"""The training of a whole run on a tiny model: what is written, reused, refused and survived."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import HOOK, data, pair

from bench import checkpoint, registry, train, training_log
from bench.checkpoint import load_sae, read_info, read_record
from bench.config import ControlConfig, RunConfig, TrainConfig, VariantConfig
from bench.datasets import LocalHub
from bench.errors import UserError
from bench.pilot import Curve
from bench.train import train_all
from variants.topk import TopK

TOPK, RELU, VANILLA = (
    VariantConfig("topk", {"k": 4}),
    VariantConfig("relu", {"l1": 0.05}),
    VariantConfig("vanilla", {"l1": 0.05}),
)
CONTROLS = (ControlConfig("random", 4.0), ControlConfig("mean"))


def config(*variants, controls=(), seeds=(0,), **settings) -> RunConfig:
    known = {"d_sae": 48, "tokens": 3000, "batch_size": 100, "lr": 3e-3, "context_size": 32}
    return RunConfig(
        name="test",
        model="nano",
        hook_name=HOOK,
        train=TrainConfig(**(known | {"heldout_tokens": 500} | settings)),
        variants=variants,
        controls=controls,
        seeds=seeds,
    )


def run(
    run_config: RunConfig, out: Path, progress=lambda *args: None, **options
) -> dict[str, Path]:
    """Label -> checkpoint folder."""
    folders = train_all(run_config, pair()[0], LocalHub(data()), out, progress, **options)
    return {folder.name: folder for folder in folders}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of a run with every variant and control."""
    out = tmp_path_factory.mktemp("whole")
    return run(config(TOPK, RELU, VANILLA, controls=CONTROLS), out)


def test_each_sae_of_the_run_has_a_folder_in_the_order_of_the_config(whole):
    assert list(whole) == [
        *("topk_k4_s0", "relu_l1-0.05_s0", "vanilla_l1-0.05_s0", "random_target4_s0", "mean_s0")
    ]
    assert [folder.parent.name for folder in whole.values()] == ["saes"] * 5


def test_the_record_says_what_made_the_sae(whole):
    info = read_info(whole["topk_k4_s0"])
    assert (info.role, info.variant, info.world, info.model) == ("trained", "topk", "nano", "nano")
    assert (info.hook_name, info.d_in, info.d_sae) == (HOOK, 24, 48)
    assert (info.knob_name, info.knob_value, info.target_l0) == ("k", 4, None)
    assert (info.init_seed, info.data_seed, info.train_tokens) == (0, 0, 3000)
    assert info.l0 == pytest.approx(4, abs=0.2)
    raw = read_record(whole["topk_k4_s0"])
    assert (raw["n_steps"], raw["context_size"], raw["stop_reason"]) == (30, 32, None)


def test_training_beats_the_control_of_the_same_l0(whole):
    trained, random = (read_record(whole[n]) for n in ("topk_k4_s0", "random_target4_s0"))
    assert random["info"]["role"] == "control" and random["info"]["train_tokens"] is None
    assert random["info"]["l0"] == pytest.approx(trained["info"]["l0"], abs=0.3)
    assert trained["explained_variance"] > random["explained_variance"] + 0.05
    assert read_record(whole["mean_s0"])["info"]["l0"] == 0


def test_saved_weights_work_on_activations_in_the_units_of_the_model(whole):
    from bench.activations import activations
    from bench.models import load_model

    tokens = torch.arange(40, 72)[None]
    x = activations(load_model(pair()[0]), HOOK, tokens)[0]
    sae = load_sae(whole["topk_k4_s0"])
    error = (x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert 0 < error < 1


def test_the_losses_of_each_sae_are_logged(whole):
    out = whole["mean_s0"].parents[1]
    assert sorted(p.stem for p in (out / "losses").iterdir()) == sorted(list(whole)[:3])


def test_a_rerun_elsewhere_in_another_order_is_bit_identical(whole, tmp_path):
    again = run(config(VANILLA, TOPK, RELU, controls=CONTROLS[::-1]), tmp_path)
    for label, folder in whole.items():
        assert contents(again[label]) == contents(folder)


def test_one_variant_alone_is_the_same_as_among_others(whole, tmp_path):
    (alone,) = run(config(RELU), tmp_path).values()
    assert contents(alone) == contents(whole["relu_l1-0.05_s0"])


def test_equal_seeds_give_variants_of_one_shape_equal_first_weights(monkeypatch, tmp_path):
    first = {}
    monkeypatch.setattr(
        train,
        "train_lockstep",
        lambda group, *args: first.update({t.label: t.variant.W_dec.detach() for t in group}),
    )
    run(config(TOPK, VANILLA, seeds=(0, 1)), tmp_path)
    assert torch.equal(first["topk_k4_s0"], first["vanilla_l1-0.05_s0"])
    assert not torch.equal(first["topk_k4_s0"], first["topk_k4_s1"])


def test_what_is_finished_is_kept_and_only_the_rest_is_trained(tmp_path, monkeypatch):
    before = run(config(TOPK, controls=CONTROLS), tmp_path)
    stages = []
    run(config(TOPK, RELU, controls=CONTROLS), tmp_path, lambda stage, *args: stages.append(stage))
    assert set(stages) == {"activations", "train"}
    monkeypatch.setattr(train, "_open", None)  # nothing is left that would need it
    again = run(config(TOPK, RELU, controls=CONTROLS), tmp_path)
    assert contents(again["topk_k4_s0"]) == contents(before["topk_k4_s0"])


def test_a_changed_setting_trains_anew(tmp_path):
    (folder,) = run(config(TOPK), tmp_path).values()
    before = contents(folder)
    run(config(TOPK, lr=1e-3), tmp_path)
    assert contents(folder) != before


class Unsaveable(TopK):
    """Trains, but cannot be written: the fault of an experiment that was lost after hours."""

    def export(self):
        raise NameError("name 'os' is not defined")


class Exploding(TopK):
    """Its loss is not a number."""

    def losses(self, batch, step):
        return {name: term * torch.nan for name, term in super().losses(batch, step).items()}


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (Unsaveable, "cannot be saved: NameError: name 'os' is not defined"),
        (Exploding, "loss is nan and error"),
    ],
)
def test_a_variant_that_fails_tells_why_and_the_others_are_saved(
    variant, reason, whole, tmp_path, monkeypatch
):
    load = registry.load
    monkeypatch.setattr(
        registry,
        "load",
        lambda kind, name, *rest: variant if name == "topk" else load(kind, name, *rest),
    )
    folders = run(config(TOPK, RELU), tmp_path)
    with pytest.raises(UserError, match=reason):
        load_sae(folders["topk_k4_s0"])
    assert read_info(folders["topk_k4_s0"]).l0 is None
    saved = checkpoint.WEIGHTS_FILE
    assert contents(folders["relu_l1-0.05_s0"])[saved] == contents(whole["relu_l1-0.05_s0"])[saved]


class Killed(BaseException):
    """As Ctrl-C: not a failure of any SAE."""


@pytest.mark.parametrize(("stage", "at"), [("train", 17), ("pilot", 12), ("train", 30)])
def test_an_interrupted_run_goes_on_and_ends_the_same(stage, at, tmp_path):
    settings = {"target_l0": 14.0}
    both = config(VariantConfig("relu", **settings), VANILLA, tokens=6000, checkpoint_every=0.2)

    def interrupt(now, done, *args):
        if (now, done) == (stage, at):
            raise Killed

    with pytest.raises(Killed):
        run(both, tmp_path / "b", interrupt)
    left = list((tmp_path / "b" / "training").glob("*/*.safetensors"))
    assert bool(left) == (at >= 12)
    first = []
    note = lambda now, done, *args: first.append((now, done)) if now == stage else None  # noqa: E731
    again = run(both, tmp_path / "b", note)
    assert first[0][1] == at // 12 * 12 + 1  # 60 steps: checkpoints at 12, 24, ...
    whole = run(both, tmp_path / "a")
    for label, folder in whole.items():
        assert contents(again[label]) == contents(folder)
    for log in ("losses", "pilots"):
        names = {p.name: p.read_bytes() for p in (tmp_path / "a" / log).iterdir()}
        assert names == {p.name: p.read_bytes() for p in (tmp_path / "b" / log).iterdir()}
    assert not list((tmp_path / "b" / "training").iterdir())


def test_the_seed_of_the_data_changes_their_order_and_not_the_first_weights(tmp_path, monkeypatch):
    first, order = [], []

    def peek(group, stream, *args):
        first.append(group[0].variant.W_dec.detach())
        order.append(torch.cat([batch.x for batch in stream]))

    monkeypatch.setattr(train, "train_lockstep", peek)
    for data_seed in (0, 1):
        run(replace(config(TOPK), data_seed=data_seed), tmp_path / str(data_seed))
    assert torch.equal(first[0], first[1])
    assert not torch.equal(order[0], order[1])
    assert torch.equal(order[0].sort(0).values, order[1].sort(0).values)  # the same tokens


def test_a_missing_logger_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="train.log_to: wandb is not installed"):
        run(config(TOPK, log_to=("wandb",)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "load", lambda *plugin: Unsaveable)
    for takes_steps in (True, False):  # the second run has the checkpoint of the first
        stages = []

        def note(now, *args, stages=stages):
            stages.append(now)

        (folder,) = run(config(TOPK), tmp_path, note, retry_failed=True).values()
        assert ("train" in stages) == takes_steps
        assert "cannot be saved" in read_record(folder)["stop_reason"]


def test_what_failed_is_kept_so_until_it_is_to_be_tried_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registry, "load", lambda *plugin: Unsaveable)
        (folder,) = run(config(TOPK), tmp_path).values()
    before = contents(folder)
    assert contents(run(config(TOPK), tmp_path)[folder.name]) == before
    run(config(TOPK), tmp_path, retry_failed=True)
    assert read_record(folder)["stop_reason"] is None


def test_a_target_far_from_the_default_is_bracketed_by_more_pilots(tmp_path):
    folders = run(config(VariantConfig("relu", {}, 5.0), tokens=6000), tmp_path)
    info = read_info(folders["relu_target5_s0"])
    assert info.l0 == pytest.approx(5, rel=0.3)
    (path,) = (tmp_path / "pilots").glob("*.json")
    curve = Curve.load(path)
    assert curve is not None and curve.brackets(5.0)
    knobs = [knob for knob, _ in curve.points]
    assert min(knobs) < info.knob_value < max(knobs)
    assert len(list((tmp_path / "pilots").glob("*.csv"))) == len(knobs)


def test_a_target_l0_is_met_through_pilots_that_a_later_run_reuses(tmp_path):
    wide = replace(config(VariantConfig("relu", target_l0=14.0), tokens=6000), seeds=(0, 1))
    stages = []
    folders = run(wide, tmp_path, lambda stage, *args: stages.append(stage))
    assert stages.count("pilot") > 0
    for folder in folders.values():
        info = read_info(folder)
        assert info.target_l0 == 14 and info.knob_name == "l1"
        assert info.l0 == pytest.approx(14, rel=0.25)
    stages.clear()
    run(replace(wide, seeds=(2,)), tmp_path, lambda stage, *args: stages.append(stage))
    assert "pilot" not in stages


def test_a_target_out_of_reach_is_the_end_of_that_sae_only(tmp_path):
    folders = run(config(VariantConfig("relu", target_l0=0.001), TOPK), tmp_path)
    with pytest.raises(UserError, match="target_l0=0.001: pilots had L0 .*; set l1 by hand"):
        load_sae(folders["relu_target0.001_s0"])
    assert load_sae(folders["topk_k4_s0"])


def test_more_latents_than_the_sae_has_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="variant 'topk': k=64 exceeds d_sae=48"):
        run(config(VariantConfig("topk", {"k": 64})), tmp_path)


def test_nothing_written_by_a_run_is_a_pickle(whole):
    files = [p for p in whole["mean_s0"].parents[1].rglob("*") if p.is_file()]
    assert files
    for path in files:
        assert path.suffix in (".json", ".safetensors", ".csv")
    json.loads((whole["mean_s0"] / "config.json").read_text())
