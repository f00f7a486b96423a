"""Out of memory on the device: the same SAEs in smaller batches, and the cell says so."""

from dataclasses import dataclass

import pytest
import torch

from bench import backoff, worker
from bench.suite import Failed, Metric, Scored, Suite
from tests.test_isolation import job


class Hungry(Suite):
    """Needs a batch that is no larger than the SAE's label says."""

    @dataclass(frozen=True)
    class Config:
        batch: int = 16
        other_batch: int = 6
        context: int = 128

    metrics = (Metric("score", "higher", headline=True),)
    side = "base"
    batch_sizes = ("batch", "other_batch")
    error: type[Exception] = torch.OutOfMemoryError
    tells = False
    """Whether it goes on after a failure, as suites do that share work."""
    calls: list

    def run(self, ctx, saes):
        self.calls.append((self.cfg.batch, [handle.label for handle in saes]))
        for handle in saes:
            if self.cfg.batch > int(handle.label.partition("_")[2] or 99):
                error = self.error("CUDA out of memory")
                if not self.tells:
                    raise error
                yield Failed(handle.label, error)
            else:
                yield Scored(handle.label, {"score": float(self.cfg.context)}, [], None)


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Runs the worker's loop on SAEs with these labels; the cells and the calls of the suite."""
    monkeypatch.setattr("bench.checkpoint.load_sae", lambda folder, device: folder.name)

    def run(*labels, **attributes):
        calls = []
        kind = type("Kind", (Hungry,), attributes | {"calls": calls})
        one = job(tmp_path, *labels)
        worker.evaluate(one, kind(), ctx=None)  # type: ignore[arg-type]
        return [cell.load() for cell in one.cells], calls

    return run


@pytest.mark.parametrize("tells", [False, True])
def test_the_batch_is_halved_until_it_fits_and_the_cell_says_so(evaluate, tells):
    cells, calls = evaluate("a", "b_4", tells=tells)
    assert [c.state for c in cells] == ["ok", "ok"]
    assert [c.metrics[0].value for c in cells] == [128.0, 128.0]
    assert cells[0].adjusted == {}
    assert cells[1].adjusted == {"batch": 4, "other_batch": 1}
    assert [batch for batch, _ in calls] == [16, 8, 4]
    assert all("a" not in labels for _, labels in calls[1:])  # what is finished is not repeated


@pytest.mark.parametrize("tells", [False, True])
def test_what_never_fits_fails_with_its_reason_and_the_others_go_on(evaluate, tells):
    cells, calls = evaluate("a_0", "b", "c_2", tells=tells)
    assert [c.state for c in cells] == ["failed", "ok", "ok"]
    assert cells[0].reason == "OutOfMemoryError: CUDA out of memory"
    assert cells[0].adjusted == {"batch": 1, "other_batch": 1}
    assert calls[-1][0] == 1 or tells


def test_a_suite_that_declares_no_such_setting_fails_at_once(evaluate):
    cells, calls = evaluate("a_4", "b", batch_sizes=())
    assert [c.state for c in cells] == ["failed", "ok"]
    assert [batch for batch, _ in calls] == [16, 16]


def test_another_error_is_no_reason_for_smaller_batches(evaluate):
    cells, calls = evaluate("a_4", error=RuntimeError)
    assert cells[0].state == "failed" and cells[0].adjusted == {}
    assert [batch for batch, _ in calls] == [16]


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("shapes differ"), False),
        (None, False),
    ],
)
def test_which_errors_mean_out_of_memory(error, is_so):
    assert backoff.is_out_of_memory(error) is is_so
    wrapped = ValueError("while scoring")
    wrapped.__cause__ = error
    assert backoff.is_out_of_memory(wrapped) is is_so


def test_a_real_allocation_that_cannot_be_met_is_seen_as_such():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert backoff.is_out_of_memory(caught.value)
