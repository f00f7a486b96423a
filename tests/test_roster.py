"""Which SAEs a run has: labels, keys, and settings that exclude one another."""

from dataclasses import replace

import pytest

from bench.config import ControlConfig, RunConfig, TrainConfig, VariantConfig
from bench.errors import UserError
from bench.models import ModelSpec
from bench.roster import TrainedEntry, roster

SPEC = ModelSpec("pythia", "real", "org/pythia", "base", 6)


def config(*variants, controls=(), **fields) -> RunConfig:
    known = {"seeds": (0,), "train": TrainConfig(d_sae=32, tokens=1000, batch_size=100)}
    known |= {"name": "test", "model": "pythia", "hook_name": "blocks.1.hook_resid_post"}
    return RunConfig(variants=variants, controls=controls, **(known | fields))


def entries(*variants, **fields):
    return roster(config(*variants, **fields), SPEC, "revision")


@pytest.mark.parametrize(
    ("variant", "label"),
    [
        (VariantConfig("topk", {"k": 8}), "topk_k8_s0"),
        (VariantConfig("topk"), "topk_k32_s0"),
        (VariantConfig("topk", target_l0=8.0), "topk_target8_s0"),
        (VariantConfig("relu", {"l1": 0.05}), "relu_l1-0.05_s0"),
        (
            VariantConfig("relu", {"decoder_init_norm": 1.0}, 12.5),
            "relu_target12.5_decoder_init_norm1_s0",
        ),
        (VariantConfig("topk", {"k": 8, "auxk_coef": 0.0}), "topk_k8_auxk_coef0_s0"),
    ],
)
def test_a_label_names_the_sparsity_what_was_chosen_and_the_seed(variant, label):
    assert entries(variant)[0].label == label


def test_every_variant_and_control_comes_once_per_seed_in_the_order_of_the_config():
    made = entries(
        VariantConfig("topk", {"k": 8}),
        VariantConfig("relu"),
        controls=(ControlConfig("random", 8.0), ControlConfig("mean")),
        seeds=(3, 1),
    )
    assert [entry.label for entry in made] == [
        *("topk_k8_s3", "topk_k8_s1", "relu_l1-0.1_s3", "relu_l1-0.1_s1"),
        *("random_target8_s3", "random_target8_s1", "mean_s3", "mean_s1"),
    ]


def test_a_native_knob_takes_the_target_and_another_is_left_to_pilots():
    topk, relu, fixed = entries(
        VariantConfig("topk", target_l0=7.6),
        VariantConfig("relu", target_l0=8.0),
        VariantConfig("relu", {"l1": 0.3}),
    )
    assert isinstance(topk, TrainedEntry) and isinstance(relu, TrainedEntry)
    assert (topk.knob_value, topk.pilot) == (8, None)
    assert relu.pilot is not None and fixed.pilot is None
    assert relu.with_knob(0.7).cfg.l1 == 0.7


def test_pilots_serve_all_targets_and_seeds_of_the_same_settings():
    made = entries(
        VariantConfig("relu", target_l0=8.0),
        VariantConfig("relu", target_l0=24.0),
        VariantConfig("relu", {"decoder_init_norm": 1.0}, target_l0=8.0),
        VariantConfig("vanilla", target_l0=8.0),
        seeds=(0, 1),
    )
    a, b, other, vanilla = (made[i].pilot for i in (0, 2, 4, 6))
    assert a == b == made[1].pilot and len({a, other, vanilla}) == 3


def test_a_key_changes_with_everything_that_decides_the_weights():
    base = config(VariantConfig("topk", {"k": 8}))
    changed = [
        base,
        replace(base, variants=(VariantConfig("topk", {"k": 9}),)),
        replace(base, data_seed=1),
        replace(base, seeds=(1,)),
        replace(base, hook_name="blocks.2.hook_resid_post"),
        replace(base, train=replace(base.train, lr=0.1)),
        replace(base, dtype="bfloat16"),
    ]
    keys = [roster(c, SPEC, "revision")[0].key for c in changed]
    keys.append(roster(base, SPEC, "another revision")[0].key)
    assert len(set(keys)) == len(keys)
    shown = replace(base.train, checkpoint_every=0.5, log_to=("wandb",))
    unrelated = replace(base, name="other", eval_seed=7, workers=1, train=shown)
    assert roster(unrelated, SPEC, "revision")[0].key == keys[0]


def test_a_knob_that_is_a_whole_number_is_rounded():
    (topk,) = entries(VariantConfig("topk", {"k": 8}))
    assert isinstance(topk, TrainedEntry)
    assert topk.with_knob(5.7).cfg.k == 6
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        topk.with_knob(0.2)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([VariantConfig("relu", {"l1": 0.1}, 8.0)], "config.l1=0.1 and target_l0=8 both set"),
        ([VariantConfig("topk", {"k": 0})], r"variants\[0\].config: k=0 must be at least 1"),
        ([VariantConfig("topk", {"kk": 8})], "unknown field in variants.0..config 'kk'"),
        (
            [VariantConfig("topk"), VariantConfig("topk", {"k": 32})],
            "'topk_k32_s0': is asked",
        ),
    ],
)
def test_settings_that_exclude_one_another_are_refused(variants, message):
    with pytest.raises(UserError, match=message):
        entries(*variants)


PLAIN = """
    from bench.variant import Exported, Variant
    class Plain(Variant):
        needs_sequences = {sequences}
        def encode(self, x, positions=None): return x @ self.W_enc
        def losses(self, batch, step): return {{"error": (batch.x - self(batch.x)).pow(2).mean()}}
        def export(self): raise NameError("name 'os' is not defined")
"""


@pytest.mark.parametrize(
    ("sequences", "variant", "message"),
    [
        (False, VariantConfig("plain", target_l0=8.0), "'plain' has no sparsity knob"),
        (True, VariantConfig("ordered"), "batch_size of at least 254 with .*=128, not 100"),
    ],
)
def test_what_a_variant_cannot_have_is_refused(plugins, sequences, variant, message):
    plugins(f"variants/{variant.name}.py", PLAIN.format(sequences=sequences))
    with pytest.raises(UserError, match=message):
        entries(variant)
