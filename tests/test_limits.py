"""Numbers of a suite that cannot work are refused before the work, in one line."""

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import registry
from bench.limits import above, at_least, at_most, distinct


@dataclass
class Fields:
    one: float = 1.0
    many: tuple[float, ...] = (1.0, 2.0)


NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, NUMBERS, st.lists(NUMBERS, max_size=5))
def test_a_limit_refuses_exactly_what_is_beyond_it(limit, one, many):
    cfg = Fields(one, tuple(many))
    everything = [one, *many]
    for check, is_legal in (
        (at_least, all(v >= limit for v in everything)),
        (at_most, all(v <= limit for v in everything)),
        (above, all(v > limit for v in everything)),
    ):
        if is_legal:
            check(cfg, limit, "one", "many")
        else:
            with pytest.raises(ValueError, match=r"^(one|many\[\d\])=.*: must be "):
                check(cfg, limit, "one", "many")


def test_entries_are_there_and_each_once():
    distinct(Fields(), "many")
    with pytest.raises(ValueError, match=r"many=\[\]: give at least one"):
        distinct(Fields(many=()), "many")
    with pytest.raises(ValueError, match=r"many\[2\]=1.0: repeats many\[0\]"):
        distinct(Fields(many=(1.0, 2.0, 1.0)), "many")


@pytest.mark.parametrize(
    ("suite", "settings", "message"),
    [
        ("core", {"batch_size_prompts": 0}, "batch_size_prompts=0: must be at least 1"),
        ("core", {"n_eval_reconstruction_batches": -1}, "batches=-1: must be at least 1"),
        ("core", {"n_eval_sparsity_variance_batches": 0}, "batches=0: must be at least 1"),
        ("core", {"context_size": 1}, "context_size=1: must be at least 2"),
        ("unlearning", {"dataset_size": 0}, "dataset_size=0: must be at least 1"),
        ("unlearning", {"llm_batch_size": 0}, "llm_batch_size=0: must be at least 1"),
        ("unlearning", {"min_questions": 0}, "min_questions=0: must be at least 1"),
        ("unlearning", {"seq_len": 1}, "seq_len=1: must be at least 2"),
        ("unlearning", {"n_features_list": (10, 0)}, "n_features_list[1]=0: must be at least 1"),
        ("unlearning", {"n_features_list": ()}, "n_features_list=[]: give at least one"),
        ("unlearning", {"retain_thresholds": (0.0,)}, "retain_thresholds[0]=0: must be above 0"),
        ("unlearning", {"retain_thresholds": (1.5,)}, "thresholds[0]=1.5: must be at most 1"),
        ("unlearning", {"multipliers": (-5,)}, "multipliers[0]=-5: must be at least 0"),
        ("unlearning", {"relative_multipliers": ()}, "relative_multipliers=[]: give at least one"),
        ("unlearning", {"relative_multipliers": (-1.0,)}, "multipliers[0]=-1: must be at least 0"),
        ("unlearning", {"relative_multipliers": (1.0, 1.0)}, "multipliers[1]=1.0: repeats"),
        ("sparse_probing", {"k_values": (2, 5)}, "[2, 5]: must have 1, and may have 2 and 5"),
        ("sparse_probing", {"k_values": (1, 3)}, "k_values=[1, 3]: must have 1"),
        ("sparse_probing", {"k_values": (1, 1)}, "k_values[1]=1: repeats k_values[0]"),
        ("sparse_probing", {"dataset_names": ()}, "dataset_names=[]: give at least one"),
        ("sparse_probing", {"dataset_names": ("ag_news",)}, "dataset_names: unknown 'ag_news'"),
        ("sparse_probing", {"probe_train_set_size": 1}, "set_size=1: must be at least 2"),
        ("sparse_probing", {"probe_test_set_size": 0}, "set_size=0: must be at least 2"),
        ("sparse_probing", {"sae_batch_size": 0}, "sae_batch_size=0: must be at least 1"),
        ("absorption", {"max_k_value": 0}, "max_k_value=0: must be at least 1"),
        ("absorption", {"llm_batch_size": 0}, "llm_batch_size=0: must be at least 1"),
        ("absorption", {"min_GT_probe_f1": 1.5}, "min_GT_probe_f1=1.5: must be at most 1"),
        ("absorption", {"f1_jump_threshold": -0.1}, "threshold=-0.1: must be at least 0"),
        ("unlearning", {"dataset_names": ("human_aging",)}, "must have 'wmdp-bio', and at least"),
        ("unlearning", {"dataset_names": ("wmdp-bio",)}, "one set of what is to be kept"),
    ],
)
def test_a_suite_refuses_what_it_cannot_compute(suite, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        registry.load("suites", suite).Config(**settings)
