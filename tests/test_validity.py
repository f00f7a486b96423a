"""A degenerate SAE is found by what its results say, with every reason, in all of its suites."""

import pytest

from bench.result import MetricValue
from bench.validity import Facts, facts, judge, reasons
from tests.cells import cell, failed, sae


def healthy() -> dict[str, float | None]:
    return {
        "l0": 8.0,
        "explained_variance": 0.9,
        "sae_top_1_test_accuracy": 0.5,
        "sae_top_5_test_accuracy": 0.8,
        "frac_alive": 0.01,
    }


def test_a_working_sae_has_no_reason_against_it():
    assert reasons(facts(healthy(), l0=8.0, train_tokens=1, layers={"a": 5, "b": 5})) == []


def test_nothing_known_is_no_reason():
    assert reasons(Facts()) == []


@pytest.mark.parametrize(
    ("metrics", "known", "reason"),
    [
        ({"l0": 0.0}, {}, "L0 is 0"),
        ({}, {"l0": 0.0}, "L0 is 0"),
        ({"frac_alive": 0.0}, {}, "every latent is dead"),
        ({"explained_variance": -0.01}, {}, "explained variance is -0.01"),
        ({"sae_top_5_test_accuracy": 0.5}, {}, "every probe is at exactly 0.5"),
        ({"mse": float("nan")}, {}, "mse is NaN"),
        ({"mse": float("inf")}, {}, "mse is NaN or infinite"),
        ({}, {"train_tokens": 0}, "training tokens are 0"),
        ({}, {"train_tokens": -5}, "training tokens are -5"),
        ({}, {"train_steps": 0}, "training steps are 0"),
        ({}, {"layers": {"name": 5, "cfg": 19}}, "layer is 5 in name but 19 in cfg"),
    ],
)
def test_each_sign_of_a_degenerate_sae_is_named(metrics, known, reason):
    found = reasons(facts(healthy() | metrics, **known))
    assert len(found) == 1
    assert reason in found[0]


def test_the_value_for_not_stated_is_a_reason_only_beside_another():
    # sae_bench's CustomSAEConfig has it by default, so well-trained SAEs carry it too
    assert reasons(Facts(train_tokens=-100_000)) == []
    assert len(reasons(Facts(train_tokens=-100_000, l0=(0.0,)))) == 2


def test_our_explained_variance_decides_over_the_formulas_of_sae_bench():
    metrics = {"explained_variance": 0.8, "saebench060_explained_variance": -2.0}
    assert reasons(facts(metrics)) == []
    assert reasons(facts({"saebench060_explained_variance": -2.0}))


def test_a_missing_metric_is_no_evidence():
    assert reasons(facts({"explained_variance": None, "sae_top_1_test_accuracy": None})) == []


def test_evidence_in_one_suite_makes_the_sae_invalid_in_all():
    dead = sae("dead_s0", l0=0.0)
    good = cell("core", 0.9)
    judged = judge([good, cell("core", 0.9, dead), cell("absorption", 0.0, dead)])
    assert judged[0] == good
    assert [c.state for c in judged[1:]] == ["invalid", "invalid"]
    assert all("L0 is 0" in c.reason for c in judged[1:])


def test_what_a_suite_found_invalid_is_named_in_the_others():
    judged = judge(
        [cell("core", 0.9), cell("absorption", None, state="invalid", reason="nothing fires")]
    )
    assert [c.reason for c in judged] == ["nothing fires"] * 2


def test_a_crash_of_an_invalid_sae_is_still_to_be_seen():
    dead = sae("dead_s0", l0=0.0)
    judged = judge([cell("core", 0.9, dead), failed("absorption", dead, "RuntimeError: boom")])
    assert judged[1].state == "invalid"
    assert "absorption failed: RuntimeError: boom" in judged[1].reason


def test_controls_are_not_judged():
    mean = sae("mean", role="control", l0=0.0)
    cells = [cell("core", -0.1, mean), cell("sparse_probing", 0.5, mean)]
    assert judge(cells) == cells


def test_two_hooks_for_one_sae_are_a_contradiction():
    other = sae(hook_name="blocks.5.hook_resid_post")
    judged = judge([cell("core", 0.9), cell("absorption", 0.1, other)])
    assert "blocks.2.hook_resid_post in core" in judged[0].reason
    assert "blocks.5.hook_resid_post in absorption" in judged[0].reason


def test_judging_looks_at_every_metric_of_the_cell():
    value = MetricValue("frac_alive", 0.0, "higher", False)
    judged = judge([cell("core", 0.9, metrics=(value,))])
    assert judged[0].reason == "every latent is dead"
