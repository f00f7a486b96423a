"""Estimates: rates are kept and used, and the parts of a run are counted."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import estimate, rates
from bench.config import ControlConfig, RunConfig, TrainConfig, VariantConfig
from bench.doctor.hours import lines
from bench.models import resolve
from bench.result import CACHE, STORE
from tests import cells

CONFIG = RunConfig(
    name="mine",
    model="nano",
    hook_name="blocks.2.hook_resid_post",
    train=TrainConfig(d_sae=1000, tokens=1_000_000, batch_size=1000),
    variants=(VariantConfig("topk", {"k": 4}), VariantConfig("topk", {"k": 8})),
    controls=(ControlConfig("mean"),),
    suites={"core": {}, "absorption": {}},
    seeds=(0, 1),
)
NANO = resolve("nano")


class Clock:
    """Moves only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def heard(timed: rates.Timed, clock: Clock, times: list[tuple[float, int]], n_saes: int) -> None:
    for clock.now, done in times:
        timed("train", done, 100, "", ["row"] * n_saes)


def test_the_rate_of_a_training_is_kept(tmp_path):
    clock, shown = Clock(), list[tuple]()
    timed = rates.Timed(lambda *call: shown.append(call), CONFIG, tmp_path, clock)
    assert rates.kept(CONFIG, tmp_path) is None
    heard(timed, clock, [(10.0, 20), (30.0, 100)], n_saes=3)
    assert rates.kept(CONFIG, tmp_path) == pytest.approx((100 - 20) * 3 / 20)
    assert [call[1] for call in shown] == [20, 100]


def test_another_kind_of_training_has_another_rate(tmp_path):
    clock = Clock()
    heard(
        rates.Timed(lambda *call: None, CONFIG, tmp_path, clock),
        clock,
        [(0, 0), (9, 100)],
        n_saes=1,
    )
    wider = replace(CONFIG, train=replace(CONFIG.train, d_sae=2000))
    assert rates.kept(CONFIG, tmp_path) and rates.kept(wider, tmp_path) is None


def test_a_moments_training_says_nothing(tmp_path):
    clock = Clock()
    timed = rates.Timed(lambda *call: None, CONFIG, tmp_path, clock)
    heard(timed, clock, [(0.0, 90), (rates.LEAST_S / 2, 100)], n_saes=1)
    assert rates.kept(CONFIG, tmp_path) is None


def test_a_damaged_rate_is_none(tmp_path):
    clock = Clock()
    timed = rates.Timed(lambda *call: None, CONFIG, tmp_path, clock)
    heard(timed, clock, [(0, 0), (9, 100)], n_saes=1)
    next((tmp_path / rates.RATES).iterdir()).write_text("{")
    assert rates.kept(CONFIG, tmp_path) is None


def test_hours_come_from_the_rate_of_an_earlier_run(tmp_path):
    clock = Clock()
    timed = rates.Timed(lambda *call: None, CONFIG, tmp_path / estimate.CACHE, clock)
    heard(timed, clock, [(0.0, 0), (10.0, 100)], n_saes=2)  # 20 SAE steps per second
    found = estimate.hours(CONFIG, NANO, tmp_path / "run")
    assert found is not None
    # 1000 steps of 4 SAEs
    assert found.training_s == pytest.approx(1000 * 4 / 20)
    assert "earlier run" in found.training_from


def test_hours_come_from_a_measurement_without_an_earlier_run(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "speed_of", lambda device: 1e9)
    found = estimate.hours(CONFIG, NANO, tmp_path / "run")
    assert found is not None
    shape = estimate.shape_of(NANO)
    assert shape is not None
    reading = 2.0 * (1_000_000 + CONFIG.train.heldout_tokens) * 3 * shape.layer_params
    assert found.training_s * 1e9 == pytest.approx(1000 * 4 * 12 * 1000 * 96 * 1000 + reading)
    assert "measured just now" in found.training_from
    assert found.unknown == ["core", "absorption"] and found.total_s == found.training_s


def test_a_search_for_a_knob_counts_its_first_pilots():
    from bench.pilot import FACTORS

    searched = replace(CONFIG, variants=(VariantConfig("relu", target_l0=4.0),), seeds=(0,))
    assert estimate.n_trained(CONFIG) == 4
    assert estimate.n_trained(searched) == 1 + len(FACTORS)


def test_suites_take_what_their_earlier_cells_took(tmp_path: Path):
    for i, wall_s in enumerate((1.0, 2.0, 9.0)):
        one = cells.cell("core", wall_s=wall_s, cell_key=f"core-{i}", engine=CONFIG.engine)
        one.save(tmp_path / STORE / one.cell_key)
    found = estimate.hours(CONFIG, NANO, tmp_path / "run")
    assert found is not None
    assert found.suites_s == {"core": 2.0 * 6, "absorption": None}  # 4 trained, 2 controls
    assert found.unknown == ["absorption"] and "3 cells" in found.suites_from
    rates.keep_set_up(tmp_path / CACHE, "core", CONFIG.engine, "nano", 30.0)
    again = estimate.hours(CONFIG, NANO, tmp_path / "run")
    assert again is not None and again.suites_s["core"] == 30.0 + 2.0 * 6


def test_before_a_first_run_nothing_is_known_of_suites(tmp_path: Path):
    found = estimate.hours(CONFIG, NANO, tmp_path / "run")
    assert found is not None
    assert list(lines(found))[-1] == "suites: not known before a first run"


def test_disk_counts_saes_checkpoints_and_caches():
    small = replace(CONFIG, seeds=(0,), controls=(), suites={"core": {}})
    sae = (2 * 96 * 1000 + 1000 + 96) * 4
    fixed = estimate.MIN_FREE_BYTES + estimate.SUITE_BYTES
    assert estimate.disk_bytes(small, NANO) == fixed + 2 * sae + 2 * 2 * 3 * sae
    cached = replace(small, activation_cache_gb=0.01)
    assert estimate.disk_bytes(cached, NANO) - estimate.disk_bytes(small, NANO) == 10**7


def test_the_speed_of_this_machine_is_measured_in_a_moment():
    assert 1e7 < estimate.speed_of("cpu") < 1e15
