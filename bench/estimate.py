"""What a run will take: memory, disk and hours, told before it starts.

Hours come from rates measured in earlier runs where there are any, else from a moment's measuring
here; the estimate says which.
"""

import statistics
import time
from pathlib import Path
from typing import NamedTuple

from bench import memory, rates
from bench.config import RunConfig
from bench.errors import UserError
from bench.models import ModelSpec
from bench.result import CACHE, CELL_FILE, STORE, Cell
from bench.shapes import Shape, shape_of

NEWEST = 400
"""Cells of earlier runs that are looked at."""
SAEBENCH_MINUTES = {
    # suite -> (per SAE, once), 16k latents, sae_bench's own engine
    "core": (9, 0),
    "sparse_probing": (3, 15),
    "absorption": (26, 33),
    "unlearning": (10, 33),
}
"""SAEBench's README."""

FLOAT = memory.FLOAT
SUITE_BYTES = 250 * 10**6
"""What sae_bench keeps on disk per suite beside our caches, on the smallest model."""
MIN_FREE_BYTES = 2 * 1024**3
"""Room for the report, the logs and everything small."""
CHECKPOINTS = 2
"""Of a training under way that are kept, each with the weights and Adam's two moments."""


def memory_bytes(config: RunConfig, spec: ModelSpec) -> int | None:
    """Bytes of the device's memory at the worst moment; None where the model is not known.

    Raises UserError for a variant that cannot be loaded.
    """
    from bench.preflight_stream import at_once

    shape = shape_of(spec)
    return None if shape is None else memory.needed(config, shape, at_once(config))


def disk_bytes(config: RunConfig, spec: ModelSpec) -> int:
    """Bytes that the run may write: SAEs, checkpoints of their training, caches, suites' files."""
    train, shape = config.train, shape_of(spec)
    d_in = _width(shape, config) or 0
    sae = (2 * d_in * train.d_sae + train.d_sae + d_in) * FLOAT
    n_trained = len(config.variants) * len(config.seeds)
    n_saes = n_trained + len(config.controls) * len(config.seeds) + len(config.saelens)
    training = n_trained * CHECKPOINTS * 3 * sae if train.checkpoint_every else 0
    caches = activation_bytes(config, d_in) + eval_cache_bytes(config)
    return MIN_FREE_BYTES + n_saes * sae + training + caches + len(config.suites) * SUITE_BYTES


def activation_bytes(config: RunConfig, d_in: int) -> int:
    """Of the cache of training activations: what it may hold, or what there is to hold."""
    size = memory.BYTES[config.dtype]
    return min(int(config.activation_cache_gb * 1e9), config.train.tokens * d_in * size)


def eval_cache_bytes(config: RunConfig) -> int:
    """Of the fast suites' cache. Its limit is a limit; nano fills little of it."""
    is_small = config.model.startswith("nano")
    return 0 if is_small or config.engine != "fast" else int(config.eval_cache_gb * 1e9)


def _width(shape: Shape | None, config: RunConfig) -> int | None:
    if shape is None:
        return config.d_in
    return shape.width(config.hook_name) or shape.d_model


class Hours(NamedTuple):
    """Time by what it is spent on, with where the numbers come from."""

    training_s: float
    """Training, the pilots' first round, and the language model that reads for them."""
    training_from: str
    suites_s: dict[str, float | None]
    """Suite -> all its SAEs; None where nothing was measured yet."""
    suites_from: str
    """Empty where nothing is known."""
    n_workers: int

    @property
    def total_s(self) -> float:
        """Of what is known; the suites share the workers."""
        known = [s for s in self.suites_s.values() if s is not None]
        longest = max(known, default=0.0)
        return self.training_s + max(longest, sum(known) / self.n_workers)

    @property
    def unknown(self) -> list[str]:
        return [suite for suite, seconds in self.suites_s.items() if seconds is None]


def hours(config: RunConfig, spec: ModelSpec, out: Path) -> Hours | None:
    """How long a whole run takes from nothing; None where the model's sizes are not known.

    Raises UserError for a variant that cannot be loaded.
    """
    shape = shape_of(spec)
    if shape is None:
        return None
    train, n_saes = config.train, n_trained(config)
    n_steps = -(-train.tokens // train.batch_size)
    step = flops_per_step(config, shape)
    cache = out.resolve().parent / CACHE
    rate = rates.kept(config, cache)
    if rate is not None:  # with the reading, which goes on beside the steps
        training_s = n_steps * n_saes / rate
        source = f"{rate:,.1f} SAE steps/s in an earlier run"
    else:
        speed = speed_of(config.device)
        training_s = (n_steps * n_saes * step + reading_flops(config, shape)) / speed
        source = f"{speed / 1e9:,.0f} GFLOP/s measured just now"
    found, cells = _suites(config, spec, out)
    return Hours(training_s, source, found, cells, max(1, config.workers))


def n_trained(config: RunConfig) -> int:
    """SAEs that are trained, with the first round of pilots that find knobs for target L0s."""
    from bench.pilot import FACTORS
    from bench.preflight_stream import searches

    return len(config.variants) * len(config.seeds) + len(searches(config)) * len(FACTORS)


def flops_per_step(config: RunConfig, shape: Shape) -> float:
    """Of one SAE: encoder and decoder, forward once and backward twice, 2 per weight and token."""
    d_in = _width(shape, config) or shape.d_model
    return 12.0 * config.train.batch_size * d_in * config.train.d_sae


def reading_flops(config: RunConfig, shape: Shape) -> float:
    """Of the language model up to the hook, on every token once: 2 per weight and token."""
    n_layers = int(config.hook_name.split(".")[1]) + 1
    return 2.0 * (config.train.tokens + config.train.heldout_tokens) * n_layers * shape.layer_params


def speed_of(device: str) -> float:
    """FLOP/s of steps of a small SAE on this device, the best of five after one to warm up."""
    import torch

    d_in, d_sae, batch = (2304, 16_384, 2048) if device.startswith("cuda") else (256, 1024, 512)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, d_in, generator=generator).to(device)
    weights = [torch.randn(d_in, d_sae, generator=generator).to(device).requires_grad_()]
    weights.append(weights[0].detach().T.contiguous().requires_grad_())
    optimiser = torch.optim.Adam(weights, lr=1e-6)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        loss = (torch.relu(x @ weights[0]) @ weights[1] - x).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 12.0 * batch * d_in * d_sae / min(seconds[1:])


def _suites(config: RunConfig, spec: ModelSpec, out: Path) -> tuple[dict[str, float | None], str]:
    """Seconds per suite for all SAEs, and where they come from."""
    from bench.plan import engine_of

    made = (len(config.variants) + len(config.controls)) * len(config.seeds)
    n_saes = made + len(config.saelens)
    walls, cache = _earlier(out.resolve().parent / STORE), out.resolve().parent / CACHE
    found: dict[str, float | None] = {}
    n_cells = 0
    for suite in config.suites:
        engine = engine_of(config, suite)
        same = walls.get((suite, engine, spec.name), [])
        set_up = rates.set_up_s(cache, suite, engine, config.model) or 0.0
        found[suite] = set_up + statistics.median(same) * n_saes if same else None
        n_cells += len(same)
    if n_cells:
        return found, f"{n_cells} cells of earlier runs, which may have had other settings"
    if spec.name in ("gemma-2-2b", "gemma-2-9b") and config.device.startswith("cuda"):
        known = {s: _published(s, n_saes) for s in config.suites}
        return known, "SAEBench's README, for an RTX 3090 and Gemma-2-2B"
    return found, ""


def _published(suite: str, n_saes: int) -> float | None:
    minutes = SAEBENCH_MINUTES.get(suite)
    return None if minutes is None else 60.0 * (minutes[0] * n_saes + minutes[1])


def _earlier(store: Path) -> dict[tuple[str, str, str], list[float]]:
    """(suite, engine, model) -> wall seconds of the newest cells that this machine has kept."""
    files = sorted(store.glob(f"*/{CELL_FILE}"), key=lambda p: p.stat().st_mtime)[-NEWEST:]
    found: dict[tuple[str, str, str], list[float]] = {}
    for path in files:
        try:
            cell = Cell.load(path.parent)
        except (UserError, ValueError):
            continue
        if cell.state == "ok" and cell.wall_s:
            found.setdefault((cell.suite, cell.engine, cell.sae.model), []).append(cell.wall_s)
    return found
