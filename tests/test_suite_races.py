"""The races of suites, which run by hand, still fit the suites."""

from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["nano", "toy"])
def test_the_suites_accept_the_settings_of_the_races(name, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "perf")
    from suite_sides import suite_of
    from worlds import WORLDS

    world = WORLDS[name]()
    for suite, fields in world.configs.items():
        cfg = suite_of(world, suite).cfg
        assert fields.items() <= vars(cfg).items()
        assert not getattr(cfg, "relative_multipliers", ())  # sae_bench has no such grid
