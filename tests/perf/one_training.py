"""Trains one variant on nano in this process; JSON of the time and memory that it took on stdout.

`python -m tests.perf.one_training topk 250000 CACHE_DIR`
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import ops, registry
from bench.activations import open_stream
from bench.allocator import keep_freed_memory
from bench.compat import prepare
from bench.config import load_config
from bench.datasets import hub_for
from bench.lockstep import train_in_loop
from bench.models import resolve
from bench.trainee import Trainee
from tests import resident

ROOT = Path(__file__).parents[2]
L0 = 8


def main(name: str, tokens: int, cache: Path) -> None:
    prepare()
    keep_freed_memory()
    config = load_config(ROOT / "configs" / "nano-variants.yaml")
    config = replace(config, train=replace(config.train, tokens=tokens))
    spec = resolve(config.model)
    stream = open_stream(config, spec, hub_for(spec, cache), cache, needs_sequences=True)
    start = time.perf_counter()
    n_steps = sum(1 for _ in stream)
    reading_s = time.perf_counter() - start

    resident.forget()
    before = resident.now()
    kind = registry.load("variants", name)
    knob = {kind.knob.name: L0} if kind.knob and kind.knob.native else {}
    draws = ops.generator(0, "weights")
    sae = kind(stream.d_in, config.train.d_sae, kind.Config(**knob), generator=draws)
    trainee = Trainee(name, sae, config.train, stream.n_steps)
    start = time.perf_counter()
    train_in_loop([trainee], stream)
    found = {
        "wall_s": time.perf_counter() - start,
        "reading_s": reading_s,
        "peak": resident.peak(),
        "before": before,
        "n_steps": n_steps,
        "stop_reason": trainee.outcome.stop_reason,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
