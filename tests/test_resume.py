"""A training that was interrupted, at any point and in any way, ends with the same weights."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from training import D_SAE, FakeStream, make

from bench import snapshot
from bench.lockstep import train_lockstep
from bench.ops import generator
from bench.snapshot import Snapshots
from bench.trainee import Trainee
from bench.training_log import TrainingLog
from bench.variant import Batch
from variants.relu import ReLU
from variants.topk import TopK
from variants.vanilla import Vanilla


class Stateful(ReLU):
    """Has every kind of state that a variant may have, and uses all of it in its weights."""

    def __init__(self, *args, generator, **kwargs):
        super().__init__(*args, generator=generator, **kwargs)
        self.register_buffer("mean", torch.zeros(self.d_in))
        self.n_steps = 0
        self.own = generator

    def get_extra_state(self):
        return {"n_steps": self.n_steps}

    def set_extra_state(self, state):
        self.n_steps = state["n_steps"]

    def losses(self, batch, step):
        self.n_steps += 1
        self.mean.lerp_(batch.x.mean(0), 0.1)
        noise = (
            torch.rand(len(batch.x), 1, generator=step.generator("noise"))
            + torch.rand(len(batch.x), 1, generator=self.own)
            + torch.rand(len(batch.x), 1)
        )
        x = batch.x - 0.1 * noise * self.mean * (1 + self.n_steps % 3)
        return {"reconstruction": (x - self(batch.x)).pow(2).sum(-1).mean()}


class Interrupted(Exception):
    """What the stream raises: from outside every SAE, like Ctrl-C."""


class Stream(FakeStream):
    """Breaks off before the batch of one step, and is slow if asked."""

    stops_at = -1
    pause_s = 0.0

    def _pass(self) -> Iterator[Batch]:
        for i, batch in enumerate(super()._pass()):
            if i == self.stops_at:
                raise Interrupted
            time.sleep(self.pause_s)
            yield batch


N_STEPS = 40
SETTINGS = {"dead_window_fraction": 0.1, "checkpoint_every": 0.125}


def group(folder: Path, stream: FakeStream) -> list[Trainee]:
    made = {
        "vanilla": make(Vanilla, l1=0.3, resample_every=0.2),
        "topk": make(TopK, k=2),
    }
    own = generator(3, "weights")
    made["stateful"] = Stateful(8, D_SAE, generator=own)
    return [
        Trainee(
            name,
            variant,
            stream.config,
            stream.n_steps,
            seed=3,
            generator=own if name == "stateful" else getattr(variant, "_generator", None),
            log=TrainingLog(folder / f"{name}.csv"),
            snapshots=Snapshots(folder / name, name),
        )
        for name, variant in made.items()
    ]


def train(folder: Path, stream: FakeStream) -> dict[str, torch.Tensor]:
    """Weights of all after training, or after going on."""
    folder.mkdir(exist_ok=True)
    trainees = group(folder, stream)
    train_lockstep(trainees, stream)
    assert [t.outcome.stop_reason for t in trainees] == [None] * 3
    return {
        f"{t.label}.{name}": value
        for t in trainees
        for name, value in t.variant.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logs(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.csv")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights and logs of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return train(folder, FakeStream(N_STEPS, **SETTINGS)), logs(folder)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(stops=st.lists(st.integers(0, N_STEPS - 1), min_size=1, max_size=3))
def test_interrupted_at_any_step_it_ends_with_the_same_weights_and_log(
    whole, tmp_path_factory, stops
):
    folder = tmp_path_factory.mktemp("stopped")
    for stop in sorted(stops):
        stream = Stream(N_STEPS, **SETTINGS)
        stream.stops_at = stop
        with pytest.raises(Interrupted):
            train(folder, stream)
    weights = train(folder, FakeStream(N_STEPS, **SETTINGS))
    assert equal(weights, whole[0]) and logs(folder) == whole[1]


def test_it_goes_on_from_the_last_checkpoint_of_each_sae(whole, tmp_path):
    stream = Stream(N_STEPS, **SETTINGS)
    stream.stops_at = 33
    with pytest.raises(Interrupted):
        train(tmp_path, stream)
    for path in (tmp_path / "topk").glob("000000030*"):
        path.unlink()  # killed before this one was written
    starts = []

    class Counting(FakeStream):
        def batches(self, start=0):
            starts.append(start)
            return super().batches(start)

    assert equal(train(tmp_path, Counting(N_STEPS, **SETTINGS)), whole[0])
    assert starts == [25]
    assert logs(tmp_path) == whole[1]


def test_a_finished_training_is_not_repeated(whole, tmp_path):
    train(tmp_path, FakeStream(N_STEPS, **SETTINGS))
    stream = Stream(N_STEPS, **SETTINGS)
    stream.stops_at = 0
    assert equal(train(tmp_path, stream), whole[0])


def test_without_checkpoints_none_are_written(whole, tmp_path):
    weights = train(tmp_path, FakeStream(N_STEPS, **SETTINGS | {"checkpoint_every": 0.0}))
    assert equal(weights, whole[0])
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_a_disk_that_is_full_for_a_while_costs_only_the_checkpoints(
    whole, tmp_path, monkeypatch, caplog
):
    write, n_calls = snapshot.write_atomic, 0

    def full(path, data):
        nonlocal n_calls
        n_calls += 1
        if n_calls > 8:
            raise OSError(28, "No space left on device")
        write(path, data)

    stream = Stream(N_STEPS, **SETTINGS)
    stream.stops_at = 33
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "write_atomic", full)
        with pytest.raises(Interrupted):
            train(tmp_path, stream)
    assert "no checkpoint at 30: [Errno 28]" in caplog.text
    assert (tmp_path / "vanilla" / "000000010.json").exists()
    assert equal(train(tmp_path, FakeStream(N_STEPS, **SETTINGS)), whole[0])


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(whole, tmp_path):
    stream = Stream(N_STEPS, **SETTINGS)
    stream.stops_at = 33
    with pytest.raises(Interrupted):
        train(tmp_path, stream)
    for path in tmp_path.glob("*/000000030.safetensors"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 4
        path.write_bytes(data)
    assert equal(train(tmp_path, FakeStream(N_STEPS, **SETTINGS)), whole[0])


def child(folder: Path, pause_s: float) -> None:
    stream = Stream(N_STEPS, **SETTINGS | {"checkpoint_every": 0.025})
    stream.pause_s = pause_s
    weights = {n: w.contiguous() for n, w in train(folder, stream).items()}
    save_file(weights, folder / "weights.safetensors")
    os._exit(0)


def newest(folder: Path) -> int:
    return max((int(p.stem) for p in folder.glob("*/*.json") if p.stem.isdigit()), default=0)


def killed_until_done(folder: Path, seed: int, n_kills: int) -> tuple[int, set[int]]:
    """SIGKILL real processes at random moments, then let one finish: kills, steps gone on from."""
    chance, fork = random.Random(seed), multiprocessing.get_context("fork")
    n_killed, steps = 0, set()
    while True:
        process = fork.Process(target=child, args=(folder, 0.005))
        process.start()
        if n_killed == n_kills:
            process.join()
            assert process.exitcode == 0
            return n_killed, steps
        # a moment after its first checkpoint, however slow the machine is
        before = newest(folder)
        while process.is_alive() and newest(folder) == before:
            time.sleep(0.002)
        process.join(chance.uniform(0.0, 0.1))
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGKILL)
            n_killed += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        steps.add(newest(folder))
        if process.exitcode == 0:  # done before it was killed: from the beginning again
            shutil.rmtree(folder)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_weights(whole, tmp_path, seed):
    folder = tmp_path / "killed"
    n_killed, steps = killed_until_done(folder, seed, n_kills=5)
    assert n_killed == 5
    assert len(steps) > 2  # it did go on
    assert equal(load_file(folder / "weights.safetensors"), whole[0])
    assert logs(folder) == whole[1]
