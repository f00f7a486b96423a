"""Memory that was freed is used again, seen in the page faults of a fresh process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import resource, torch
from bench.allocator import keep_freed_memory
torch.set_num_threads(1)

def faults(n=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.full((4096, 4096), 1.0)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
assert keep_freed_memory() and keep_freed_memory()
faults(20)  # until a block has been joined from two, with room for alignment
print(default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_large_blocks_cost_their_page_faults_once():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=ROOT
    )
    default, kept = map(int, done.stdout.split())
    pages = 5 * 2**26 // 4096
    assert default > 0.1 * pages  # with huge pages there are fewer than one per 4 KiB
    assert kept < 0.01 * pages
