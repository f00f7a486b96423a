"""The whole life of every variant: trained on a tiny model, saved, loaded, and taken up again."""

import pytest
import torch
from sequences import FakeSequences
from test_train import config, run
from training import D_SAE, at, make

from bench import registry
from bench.checkpoint import load_sae, read_record
from bench.config import TrainConfig, VariantConfig
from bench.lockstep import train_in_loop
from bench.snapshot import Snapshots
from bench.trainee import Trainee

SETTINGS = {
    "adaptive_orthogonal": {"group_size": 4},
    "temporal_consistency": {"prune_fraction": 0.25, "adapt_scales": True, "adapt_total": True},
    "directional": {"similarity": "enc_dec"},
    "contrastive": {"head_dim": 4},
}
NAMES = [*registry.names("variants"), "saelens:batchtopk", "saelens:gated"]


def settings(name: str) -> dict:
    knob = registry.load("variants", name).knob
    return SETTINGS.get(name, {}) | ({"k": 4} if knob and knob.name == "k" else {})


def test_every_variant_is_trained_saved_and_loaded_in_one_run(tmp_path):
    what = [VariantConfig(name, settings(name)) for name in NAMES]
    what.append(VariantConfig("fixed_orthogonal", {"base": "topk", "k": 4}))
    folders = run(config(*what, tokens=4000), tmp_path)
    assert len(folders) == len(what)
    for label, folder in folders.items():
        assert read_record(folder)["stop_reason"] is None, label
        sae = load_sae(folder)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(48))
        assert read_record(folder)["info"]["l0"] > 0


class Killed(BaseException):
    pass


class Dies(FakeSequences):
    """A stream that ends in the middle of training."""

    def batches(self, start=0):
        for i, batch in enumerate(super().batches(start), start):
            if i == 13:
                raise Killed
            yield batch


@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_was_killed_ends_with_the_same_weights(name, tmp_path):
    variant = registry.load("variants", name)

    def trained(stream, folder):
        sae = make(variant, **settings(name))
        train = TrainConfig(D_SAE, tokens=32 * 20, batch_size=32, lr=3e-3, checkpoint_every=0.25)
        trainee = Trainee(name, sae, train, 20, seed=7, snapshots=Snapshots(folder, "key"))
        train_in_loop([trainee], stream)
        assert trainee.outcome.stop_reason is None, trainee.outcome
        return sae.export().state

    whole = trained(FakeSequences(20), tmp_path / "whole")
    with pytest.raises(Killed):
        trained(Dies(20), tmp_path / "killed")
    assert Snapshots(tmp_path / "killed", "key").load().n_steps == 10
    again = trained(FakeSequences(20), tmp_path / "killed")
    assert all(torch.equal(whole[n], again[n]) for n in whole)


def test_no_variant_draws_from_the_global_numbers():
    # a variant's draws have to follow from seed and step, or nothing above holds on a cluster
    stream = FakeSequences(1)
    batch = next(iter(stream))
    for name in NAMES:
        sae = make(registry.load("variants", name), **settings(name))
        sae.start(batch.x)
        before = torch.get_rng_state()
        sae.losses(batch, at(number=3, length=0.05))
        assert torch.equal(torch.get_rng_state(), before), name
