"""How long a user waits for help and lists. Limits are those promised to users."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.perf
SCRIPT = Path(__file__).parents[1] / "bench.py"


@pytest.mark.parametrize(
    ("arguments", "limit_s"),
    [
        (["--help"], 1.0),
        (["run", "--help"], 1.0),
        (["list", "variants"], 2.0),
        (["list", "suites", "--json"], 2.0),
        (["list", "models"], 2.0),
    ],
)
def test_help_and_lists_are_instant(arguments, limit_s):
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, SCRIPT, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    assert min(times) < limit_s, times
