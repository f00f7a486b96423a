"""Wall time and peak memory of a whole training of each variant on nano, each in its own process.

`PERF_TOKENS=250000 python -m pytest -m perf tests/perf/test_variant_training.py`. No time is
asserted. The time in which the model read the tokens before is the same for all, and beside it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry

N_TOKENS = int(os.environ.get("PERF_TOKENS", "100000"))
ROOT = Path(__file__).parents[2]
MB = 1e6


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.perf
@pytest.mark.parametrize("name", registry.names("variants"))
def test_training(name, cache, benchmark, trainings):
    def train() -> dict:
        command = [sys.executable, "-m", "tests.perf.one_training", name, str(N_TOKENS), str(cache)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    found = benchmark.pedantic(train, rounds=1)
    assert (found["stop_reason"], found["n_steps"]) == (None, N_TOKENS // 256)
    benchmark.extra_info.update(found)
    trainings.append(
        f"| `{name}` | {found['wall_s']:.1f} | {found['reading_s']:.1f} "
        f"| {found['peak'] / MB:.0f} | {(found['peak'] - found['before']) / MB:.0f} |"
    )
