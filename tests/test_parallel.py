"""Training in processes: the same weights as in one, whatever happens to a process."""

import errno
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, make

from bench import parallel
from bench.lockstep import train_lockstep
from bench.ops import generator
from bench.snapshot import Snapshots
from bench.trainee import Outcome, Trainee
from bench.training_log import TrainingLog
from variants.topk import TopK
from variants.vanilla import Vanilla

HERE = os.getpid()
N_STEPS = 40


class Stream(FakeStream):
    """Small enough for processes; its batches may be slow, and are counted."""

    is_in_memory = True
    pause_s = 0.0
    n_drawn = 0
    """In this process."""

    def _pass(self):
        for batch in super()._pass():
            time.sleep(self.pause_s)
            self.n_drawn += 1
            yield batch


class Noting(TopK):
    """Notes the processes that took its steps, and fails in one of them as `fault` says."""

    fault = ""
    fails_at = N_STEPS // 2
    n_child_steps = multiprocessing.get_context("fork").Value("i")
    """In processes, of all."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("pids", torch.zeros(N_STEPS, dtype=torch.long))

    def after_step(self, batch, step):
        super().after_step(batch, step)
        is_child = os.getpid() != HERE
        self.n_child_steps.value += is_child
        self.pids[step.number] = os.getpid()
        if step.number != self.fails_at:
            return
        if self.fault == "raise":
            raise IndexError("no such latent")
        if self.fault == "exit" and is_child:
            os._exit(3)
        if self.fault == "hang" and is_child:
            time.sleep(60)


@pytest.fixture
def train(tmp_path):
    """Trains three on `n_threads` cores; the trainees and the reports."""
    threads = torch.get_num_threads()

    def start(n_threads: int, fault="", stream: FakeStream | None = None, **settings):
        stream = stream or Stream(N_STEPS, **settings)
        folder = tmp_path / f"{n_threads} {fault}"
        torch.set_num_threads(n_threads)
        trainees = group(folder, stream, fault)
        Noting.n_child_steps.value = 0
        reports = []
        train_lockstep(trainees, stream, lambda *report: reports.append(report))
        assert torch.get_num_threads() == n_threads
        return trainees, reports

    yield start
    torch.set_num_threads(threads)


def group(folder: Path, stream: FakeStream, fault="") -> list[Trainee]:
    variants = make(Noting, k=3), make(Vanilla, l1=0.3, resample_every=0.2), make(Noting, k=2)
    variants[0].fault = fault
    return [
        Trainee(
            name,
            variant,
            stream.config,
            stream.n_steps,
            seed=3,
            generator=generator(3, "weights"),
            log=TrainingLog(folder / f"{name}.csv"),
            snapshots=Snapshots(folder / name, name),
        )
        for name, variant in zip("abc", variants)
    ]


def processes(trainees: list[Trainee]) -> set[int]:
    """Those that took the steps of `Noting`, of all in the group."""
    return {pid for i in (0, 2) for pid in trainees[i].variant.get_buffer("pids").tolist()}


def same(found: list[Trainee], expected: list[Trainee]) -> bool:
    """Whether all weights are equal, bit for bit."""
    return all(
        torch.equal(value, b.variant.state_dict()[name])
        for a, b in zip(found, expected, strict=True)
        for name, value in a.variant.state_dict().items()
        if name != "pids"
    )


def test_processes_give_the_weights_and_logs_of_one_thread(train, tmp_path):
    (apart, apart_reports), (alone, alone_reports) = train(3), train(1)
    assert len(processes(apart)) == 2 and HERE not in processes(apart)  # a and c
    assert processes(alone) == {HERE}
    assert same(apart, alone)
    assert [t.outcome for t in apart] == [Outcome(N_STEPS)] * 3
    for name in "abc":
        logs = [(tmp_path / folder / f"{name}.csv").read_bytes() for folder in ("3 ", "1 ")]
        assert logs[0] == logs[1]
    assert apart_reports[-1][:2] == alone_reports[-1][:2] == (N_STEPS, N_STEPS)
    assert sorted(apart_reports[-1][2]) == sorted(alone_reports[-1][2])


def test_more_saes_than_processes_share_them(train):
    trainees, _ = train(2)
    assert len(processes(trainees)) == 1 and HERE not in processes(trainees)  # a and c
    assert same(trainees, train(1)[0])


@pytest.mark.parametrize("fault", ["exit", "hang"])
def test_what_a_process_leaves_undone_is_done_without_it(train, monkeypatch, caplog, fault):
    monkeypatch.setattr(parallel, "IDLE_S", 0.5)
    monkeypatch.setattr(parallel, "LOOK_EVERY_S", 0.05)
    trainees, _ = train(3, fault)
    told = {"exit": "ended with exit status 3", "hang": "was idle for 0.5 s"}[fault]
    assert f"a training process {told}; going on without it" in caplog.messages
    assert HERE in processes(trainees) and len(processes(trainees)) == 3
    assert [t.outcome for t in trainees] == [Outcome(N_STEPS)] * 3
    assert same(trainees, train(1)[0])


def test_a_failure_is_told_as_without_processes(train, tmp_path):
    handler = logging.FileHandler(tmp_path / "log.txt")
    logging.getLogger().addHandler(handler)
    try:
        apart = train(3, "raise")[0]
    finally:
        logging.getLogger().removeHandler(handler)
    alone = train(1, "raise")[0]
    reason = "IndexError: no such latent at step 20 of 40"
    assert [t.outcome.stop_reason for t in apart] == [reason, None, None]
    assert [t.outcome.stop_reason for t in alone] == [reason, None, None]
    assert same(apart[1:], alone[1:])
    assert (tmp_path / "log.txt").read_text().count("a failed") == 1  # by the parent alone


def test_what_is_finished_is_not_repeated(train):
    """As after a crash between the end of training and the saving of the SAEs."""
    trainees, _ = train(2)
    again, reports = train(2)
    assert same(again, trainees) and reports == []
    assert Noting.n_child_steps.value == 0


def test_processes_that_all_die_at_once_cost_nothing_else(train, monkeypatch):
    monkeypatch.setattr(Noting, "fails_at", 0)
    monkeypatch.setattr(Noting, "fault", "exit")
    stream = Stream(N_STEPS)
    stream.pause_s = 0.01
    trainees, reports = train(2, stream=stream)
    assert [t.outcome for t in trainees] == [Outcome(N_STEPS)] * 3
    assert reports[-1][:2] == (N_STEPS, N_STEPS)


def test_without_room_for_processes_there_are_none(train, monkeypatch, caplog):
    def refuse(*args):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(parallel, "_started", refuse)
    assert processes(train(3)[0]) == {HERE}
    assert "no training process can be started" in caplog.text


def test_a_worker_of_a_pool_trains_by_itself(tmp_path):
    stream = Stream(N_STEPS)
    trainees = group(tmp_path, stream)

    def run():
        torch.set_num_threads(2)
        train_lockstep(trainees, stream)
        os._exit(0 if all(t.outcome == Outcome(N_STEPS) for t in trainees) else 1)

    worker = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0


def test_where_one_stops_early_the_others_go_on_and_nothing_is_read_for_nothing(train):
    stream = Stream(N_STEPS)
    trainees, reports = train(3, "raise", stream)
    assert trainees[0].outcome.n_steps == N_STEPS // 2
    # the parent repeats what lies behind the last checkpoint of the one that failed
    assert 0 < stream.n_drawn < N_STEPS
    assert max(done for done, *_ in reports) == N_STEPS


def test_what_cannot_be_handed_over_is_not_trained_twice(train, tmp_path):
    (tmp_path / "2 ").mkdir()
    for name in "abc":
        (tmp_path / "2 " / name).write_text("no folder")
    trainees, _ = train(2)
    assert processes(trainees) == {HERE}
    assert 0 < Noting.n_child_steps.value < N_STEPS  # until the first checkpoint was lost


def test_only_a_process_that_idles_under_the_eyes_of_its_parent_is_given_up(monkeypatch):
    now, cpu_s = [0.0], [0.0]
    monkeypatch.setattr(parallel, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(parallel, "_cpu_s", lambda pid: cpu_s[0])
    heard, told = multiprocessing.Pipe(duplex=False)
    child = parallel._Child(SimpleNamespace(pid=1), heard)

    def look(after_s: float) -> bool:
        now[0] += after_s
        return child.listen()

    assert look(10_000.0)  # both were suspended
    for _ in range(3):  # a step that takes long, or a message now and then
        assert all(look(1.0) for _ in range(50))
        cpu_s[0] += 0.5
    assert all(look(1.0) for _ in range(50))
    told.send(parallel.Message(1, 2, ()))
    assert all(look(1.0) for _ in range(int(parallel.IDLE_S) + 1))
    assert not look(1.0)


def test_a_signal_that_is_ignored_stays_so(train, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def step(self, batch, step):
        is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self.pids[step.number] = is_ignored and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    monkeypatch.setattr(Noting, "after_step", step)
    try:
        trainees, _ = train(2)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert processes(trainees) == {True}


def test_nothing_to_train_reads_nothing():
    train_lockstep([], None)


def test_without_checkpoints_there_are_no_processes(train):
    assert processes(train(3, checkpoint_every=0)[0]) == {HERE}


def test_what_reports_to_other_places_stays_where_they_are_open(train, monkeypatch):
    """wandb and TensorBoard hold connections and threads, which a fork would break."""
    monkeypatch.setattr(TrainingLog, "has_sinks", True)
    assert processes(train(3)[0]) == {HERE}


def test_only_small_steps_on_activations_in_memory_are_small():
    assert parallel.is_small(Stream())
    flops = 12 * 32 * D_IN * D_SAE
    n = int(parallel.SMALL_FLOPS / flops)
    assert parallel.is_small(Stream(2, batch_size=32 * n))
    assert not parallel.is_small(Stream(2, batch_size=32 * (n + 1)))
    assert not parallel.is_small(FakeStream())


def test_large_steps_keep_their_threads(train):
    trainees, _ = train(2, stream=FakeStream(N_STEPS))
    assert processes(trainees) == {HERE}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_parent(tmp_path, number):
    stream = Stream(N_STEPS)
    stream.pause_s = 60.0  # no sign of life, which would fail without a parent
    context = multiprocessing.get_context("fork")

    def run():
        torch.set_num_threads(2)
        train_lockstep(group(tmp_path, stream), stream)

    parent = context.Process(target=run)
    parent.start()
    children = eventually(lambda: children_of(parent.pid), lambda found: len(found) == 2)
    os.kill(parent.pid, number)
    parent.join()
    assert not eventually(lambda: [c for c in children if is_alive(c)], lambda left: not left)


def eventually(look, is_enough, limit_s=20.0):
    """What `look` sees once it is enough, or at the end."""
    end = time.monotonic() + limit_s
    while not is_enough(found := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
