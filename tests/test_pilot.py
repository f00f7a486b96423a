"""The search for a knob: interpolated between pilots, never beyond them, and widened until met."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.pilot import BRACKET, FACTORS, MAX_ROUNDS, Curve
from bench.variant import Knob

CURVE = Curve("l1", ((0.4, 4.0), (0.1, 20.0), (0.2, 10.0), (0.8, 0.0)))
FALLING, RISING = Knob("l1", raises_l0=False, native=False), Knob("theta", True, False)


@pytest.mark.parametrize(("target", "knob"), [(16, 0.125), (10, 0.2), (5, 0.3379)])
def test_the_knob_is_interpolated_in_logarithms(target, knob):
    assert CURVE.knob_for(target) == pytest.approx(knob, rel=1e-3)


def test_between_pilots_a_power_law_is_met_exactly():
    law = Curve("l1", tuple((knob, 3 * knob**-0.8) for knob in (0.05, 0.3, 1.0)))
    assert law.knob_for(3 * 0.12**-0.8) == pytest.approx(0.12)
    rising = Curve("k", tuple((knob, knob**1.5) for knob in (1.0, 9.0)))
    assert rising.knob_for(8) == pytest.approx(4)


@pytest.mark.parametrize("target", [3.9, 4.9, 16.1, 30])
def test_a_target_must_be_bracketed_by_a_quarter(target):
    message = (
        f"target_l0={target}: pilots had L0 20 at 0.1, 10 at 0.2, 4 at 0.4, 0 at 0.8, which does "
        f"not reach from {target / 1.25:.3g} to {target * 1.25:.3g}; set l1 by hand"
    )
    with pytest.raises(UserError, match=message):
        CURVE.knob_for(target)


def test_without_pilots_the_knob_is_to_be_set_by_hand():
    with pytest.raises(UserError, match="pilots had L0 none, which .*; set l1 by hand"):
        Curve("l1", ()).knob_for(8)


def test_what_could_not_be_trained_is_named():
    with pytest.raises(UserError, match=r"pilots had L0 none \(2, 3 cannot be trained\)"):
        Curve("l1", (), refused=(2.0, 3.0)).knob_for(8)


def test_a_curve_survives_its_file_and_a_broken_file_is_none(tmp_path):
    path = tmp_path / "pilot.json"
    assert Curve.load(path) is None
    curve = CURVE.with_points([], refused=[1.5]).give_up([64.0, 8.0])
    curve.save(path)
    assert Curve.load(path) == curve
    assert curve.given_up == (64.0,)
    path.write_text('{"knob": "l1"}')
    assert Curve.load(path) is None


def test_bracketed_targets_need_no_more_pilots():
    assert CURVE.next_knobs([5.0, 8.0, 16.0], FALLING) == []


def test_a_wide_gap_around_a_target_is_halved():
    curve = Curve("l1", ((0.1, 40.0), (0.4, 2.0)))
    assert curve.next_knobs([8.0], FALLING) == [pytest.approx(0.2)]


def test_next_knobs_follow_the_slope_beyond_the_outermost_pilots():
    law = Curve("l1", tuple((knob, 3 / knob) for knob in (0.3, 0.6)))  # L0 10 and 5
    low, high = law.next_knobs([2.0, 32.0], FALLING)
    assert low == pytest.approx(3 / (32 * BRACKET * 1.1))
    assert high == pytest.approx(3 / (2 / BRACKET / 1.1))


def test_towards_a_collapse_or_a_refusal_the_interval_is_halved():
    assert CURVE.next_knobs([2.0], FALLING) == [pytest.approx(math.sqrt(0.4 * 0.8))]
    refused = Curve("theta", ((0.2, 4.0), (0.1, 2.0)), refused=(0.9,))
    assert refused.next_knobs([8.0], RISING)[-1] == pytest.approx(math.sqrt(0.2 * 0.9))


def test_where_all_collapsed_the_knob_goes_to_where_something_fires():
    assert Curve("l1", ((4.0, 0.0), (2.0, 0.0))).next_knobs([8.0], FALLING) == [0.25]
    assert Curve("theta", ((4.0, 0.0), (2.0, 0.0))).next_knobs([8.0], RISING) == [32.0]


def search(law, targets, knob: Knob, default: float) -> Curve:
    """The rounds of the trainer with a formula in place of a training."""
    curve = Curve(knob.name).with_points((f * default, law(f * default)) for f in FACTORS)
    for _ in range(MAX_ROUNDS - 1):
        curve = curve.with_points((k, law(k)) for k in curve.next_knobs(targets, knob))
    return curve.give_up(targets)


@given(
    exponent=st.floats(0.4, 2.0),
    at_default=st.floats(1.5, 60.0),
    rises=st.booleans(),
    wobble=st.floats(0.0, 0.08),
)
def test_power_laws_with_noise_are_bracketed_in_a_few_rounds(exponent, at_default, rises, wobble):
    def law(knob):
        sign = 1 if rises else -1
        return at_default * knob ** (sign * exponent) * (1 + wobble * math.sin(50 * knob))

    targets = [4.0, 8.0, 16.0, 32.0]
    curve = search(law, targets, RISING if rises else FALLING, default=1.0)
    assert not curve.given_up
    for target in targets:
        # within what noise and the curvature of a sine can do
        assert law(curve.knob_for(target)) == pytest.approx(target, rel=0.02 + 4 * wobble)


def test_a_law_that_ends_in_a_cliff_is_followed_to_its_edge():
    curve = search(lambda k: 20 / k if k < 4 else 0.0, [8.0], FALLING, default=1.0)
    assert curve.knob_for(8.0) == pytest.approx(2.5)


def test_an_l0_that_no_knob_gives_is_given_up_and_not_tried_again():
    curve = search(lambda k: max(10.0, 20 - k), [4.0, 14.0], FALLING, default=1.0)
    assert curve.given_up == (4.0,)
    assert curve.next_knobs([4.0], FALLING) == []
    with pytest.raises(UserError, match="target_l0=4: pilots had L0 .* choose a target that it"):
        curve.knob_for(4.0)
    assert curve.knob_for(14.0) > 0
