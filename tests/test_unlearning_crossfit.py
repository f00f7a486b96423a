"""The score is measured on questions that did not choose the setting, with honest intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.unlearning.crossfit import clopper_pearson, corrected, cross_fitted, folds
from bench.unlearning.grid import HAZARD, Setting, best, everything, saebench_score

SIDE = "human_aging"
SEED = 7


def setting(hazard_right, side_right, multiplier=1.0, n_touched=1):
    """One setting; the arguments say of each question whether it is answered right."""
    correct = {
        HAZARD: {i: float(v) for i, v in enumerate(hazard_right)},
        SIDE: {i: float(v) for i, v in enumerate(side_right)},
    }
    return Setting(multiplier, 10, 0.01, correct, (1,), n_touched)


def losing(lost, n=10, side_lost=(), n_side=100, **fields):
    """One setting that loses these questions."""
    return setting(
        [i not in lost for i in range(n)], [i not in side_lost for i in range(n_side)], **fields
    )


def first_half(n=10, name=HAZARD):
    return [i for i in range(n) if folds({name: range(n)}, SEED)[0](name, i)]


def test_the_best_of_many_settings_looks_better_than_it_is_and_cross_fitted_it_does_not():
    """16 settings that all lose each of 80 questions with probability 0.05, 150 times."""
    from scipy.stats import binom

    draws = np.random.default_rng(0)
    n, p, n_settings, n_repeats = 80, 0.05, 16, 150
    best_of_all, ours = [], []
    for _ in range(n_repeats):
        kept = draws.random((n_settings, n)) >= p
        settings = [setting(row, [True] * 4, m) for m, row in enumerate(kept)]
        best_of_all.append(saebench_score(settings))
        ours.append(cross_fitted(settings, SEED, 0.99).drop)
    below = binom.cdf(np.arange(n + 1), n, p) ** n_settings  # P(the most of 16 is at most k)
    expected_most = (1 - below).sum() / n
    assert expected_most == pytest.approx(2 * p, rel=0.05)
    assert np.mean(best_of_all) == pytest.approx(expected_most, abs=0.005)
    # three standard errors: each question counts once, so the sd of a score is that of a share
    error = 3 * np.sqrt(p * (1 - p) / n / n_repeats)
    assert np.mean(ours) == pytest.approx(corrected(p), abs=corrected(error))


def test_a_real_difference_between_settings_is_found():
    draws = np.random.default_rng(1)
    rates = [0.1, 0.6, 0.1, 0.1]
    settings = [setting(draws.random(200) >= p, [True] * 50, m) for m, p in enumerate(rates)]
    fit = cross_fitted(settings, SEED, 0.99)
    assert [s.multiplier for s in fit.chosen] == [1, 1]
    assert fit.drop == pytest.approx(corrected(1 - settings[1].hazard(everything)))
    low, high = fit.drop_interval
    assert low < corrected(0.6) < high


def test_each_half_is_measured_under_the_choice_of_the_other():
    first = set(first_half())
    second = set(range(10)) - first
    # the first loses all of the first half and is chosen there; the other is the better elsewhere
    fit = cross_fitted(
        [losing(first), losing({min(first), *list(second)[:3]}, multiplier=2)], SEED, 0.99
    )
    assert [s.multiplier for s in fit.chosen] == [1, 2]
    assert {i for (_, i), lost in fit.lost.items() if lost} == {min(first)}
    assert fit.drop == pytest.approx(corrected(1 / 10))
    assert len(fit.lost) == 10


def test_guessing_is_1_and_the_interval_is_on_the_same_scale():
    fit = cross_fitted([losing(set(range(30)), n=40)], SEED, 0.99)
    assert fit.drop == pytest.approx(1)
    assert fit.drop_interval == pytest.approx([4 / 3 * x for x in clopper_pearson(30, 40)])


def test_gates_decide_what_may_be_chosen():
    wild = losing(set(range(9)), side_lost=set(range(0, 100, 25)), multiplier=2)  # 0.96
    tame = losing({0, 1})
    strict, loose = (cross_fitted([tame, wild], SEED, gate) for gate in (0.99, 0.90))
    assert strict.drop == pytest.approx(corrected(0.2))
    assert strict.side == 1
    assert loose.drop == pytest.approx(corrected(0.9))
    assert loose.side == pytest.approx(0.96)
    assert loose.side_interval == pytest.approx(clopper_pearson(96, 100))


def test_why_there_is_no_effect_is_told_apart():
    side = set(range(100))
    silent = losing((), n_touched=0)
    assert cross_fitted([silent, silent], SEED, 0.99).note.startswith("never fired")
    assert cross_fitted([losing(())], SEED, 0.99).note.startswith("no effect")
    failed = cross_fitted([losing(set(range(10)), side_lost=side)], SEED, 0.99)
    assert failed.note == "gate failed: no setting keeps side accuracy 0.99 (at most 0.000)"
    assert (failed.drop, failed.side) == (0, 1)
    half = losing(set(range(10)), side_lost=set(first_half(100, SIDE)))
    on_one = cross_fitted([half], SEED, 0.99)
    assert on_one.note.startswith("gate failed on one half")
    assert on_one.drop == pytest.approx(corrected(0.5))
    assert cross_fitted([losing({1})], SEED, 0.99).note == ""


def test_of_equals_the_gentler_setting_is_chosen():
    assert best([losing({1}), losing({1}, multiplier=2)], everything).multiplier == 1


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (7, 97), (20, 20), (96, 97)])
def test_clopper_pearson_is_scipys_and_its_definition(k, n):
    from scipy.stats import binom, binomtest

    low, high = clopper_pearson(k, n)
    reference = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((reference.low, reference.high))
    if k > 0:
        assert binom.sf(k - 1, n, low) == pytest.approx(0.025)
    if k < n:
        assert binom.cdf(k, n, high) == pytest.approx(0.025)


IDS = st.dictionaries(
    st.sampled_from([HAZARD, SIDE, "high_school_geography"]),
    st.lists(st.integers(0, 500), unique=True, max_size=40),
)


@given(IDS, st.integers(0, 100), st.randoms())
def test_halves_split_each_subject_evenly_whatever_the_order_and_the_others(ids, seed, draws):
    first, second = folds(ids, seed)
    for name, asked in ids.items():
        one, two = ([i for i in asked if half(name, i)] for half in (first, second))
        assert sorted(one + two) == sorted(asked)
        assert abs(len(one) - len(two)) <= 1
        other_order = draws.sample(asked, len(asked))
        alone = folds({name: other_order}, seed)[0]
        assert [i for i in asked if alone(name, i)] == one


def test_another_seed_gives_other_halves():
    assert first_half(40) != [i for i in range(40) if folds({HAZARD: range(40)}, 8)[0](HAZARD, i)]
