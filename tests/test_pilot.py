"""The search for a knob: interpolated between pilots, never beyond them."""

import pytest
from training import activations, make

from bench.errors import UserError
from bench.pilot import Curve, curve
from variants.relu import ReLU

CURVE = Curve("l1", ((0.4, 4.0), (0.1, 16.0), (0.2, 10.0), (0.8, 0.0)))


@pytest.mark.parametrize(("target", "knob"), [(16, 0.1), (10, 0.2), (4, 0.4)])
def test_a_pilot_that_met_the_target_gives_its_knob(target, knob):
    assert CURVE.knob_for(target) == pytest.approx(knob)


def test_between_pilots_a_power_law_is_met_exactly():
    law = Curve("l1", tuple((knob, 3 * knob**-0.8) for knob in (0.05, 0.3, 1.0)))
    assert law.knob_for(3 * 0.12**-0.8) == pytest.approx(0.12)
    rising = Curve("k", tuple((knob, knob**1.5) for knob in (1.0, 9.0)))
    assert rising.knob_for(8) == pytest.approx(4)


@pytest.mark.parametrize("target", [3.9, 16.1])
def test_nothing_is_extrapolated(target):
    with pytest.raises(UserError, match=f"target_l0={target}: pilots had L0 16 at 0.1, 10 at 0.2"):
        CURVE.knob_for(target)


def test_without_pilots_the_knob_is_to_be_set_by_hand():
    with pytest.raises(UserError, match="pilots had L0 none; set l1 by hand"):
        Curve("l1", ()).knob_for(8)


def test_a_curve_survives_its_file_and_a_broken_file_is_none(tmp_path):
    path = tmp_path / "pilot.json"
    assert Curve.load(path) is None
    CURVE.save(path)
    assert Curve.load(path) == CURVE
    path.write_text('{"knob": "l1"}')
    assert Curve.load(path) is None


def test_the_curve_counts_active_latents():
    sae, x = make(ReLU, l1=0.3), activations(100)
    expected = (sae.encode(x) > 0).sum(-1).float().mean().item()
    assert curve("l1", [sae], x).points == ((0.3, pytest.approx(expected)),)
