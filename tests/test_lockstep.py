"""The training loop: what one SAE does never reaches another, and nothing waits for the device."""

import csv

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training import D_IN, D_SAE, FakeStream, at, make

from bench.config import TrainConfig
from bench.lockstep import train_lockstep
from bench.schedules import lr_factor
from bench.train import train_one
from bench.trainee import N_REPORTS, Outcome, Trainee
from bench.training_log import TrainingLog
from bench.variant import Step, Variant
from variants.relu import ReLU
from variants.topk import TopK
from variants.vanilla import Vanilla


class Faulty(TopK):
    """Fails in its fifth step, in the way that `fault` says."""

    fault = "raise"
    n_calls = 0

    def losses(self, batch, step):
        self.n_calls += 1
        terms = super().losses(batch, step)
        if self.n_calls < 5:
            return terms
        if self.fault == "raise":
            raise IndexError("no such latent")
        return {**terms, "auxk": terms["auxk"] * torch.nan}


def trainees(stream, *variants, log=None):
    return [
        Trainee(f"{i}", v, stream.config, stream.n_steps, log=TrainingLog(log))
        for i, v in enumerate(variants)
    ]


def trained(stream, *variants):
    """Outcomes and weights after training together."""
    group = trainees(stream, *variants)
    train_lockstep(group, stream)
    return [(t.outcome, t.variant.state_dict()) for t in group]


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def three(seed=0):
    return make(Vanilla, seed, l1=0.1), make(ReLU, seed), make(TopK, seed, k=3)


def test_a_rerun_is_bit_identical_and_another_seed_is_not():
    stream = FakeStream()
    first, again, other = (trained(stream, *three(seed)) for seed in (0, 0, 1))
    assert all(equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert not any(equal(a, b) for (_, a), (_, b) in zip(first, other, strict=True))


def test_neither_order_nor_company_changes_an_sae():
    stream = FakeStream()
    together = trained(stream, *three())
    reverse = trained(stream, *reversed(three()))[::-1]
    alone = [trained(stream, variant)[0] for variant in three()]
    for i in range(3):
        assert equal(together[i][1], reverse[i][1]) and equal(together[i][1], alone[i][1])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("raise", "IndexError: no such latent at step 4 of 50"), ("nan", "loss is nan and error")],
)
def test_what_fails_stops_alone_with_its_reason(fault, reason):
    stream, bad = FakeStream(), make(Faulty, k=3)
    bad.fault = fault
    (outcome, _), (other, weights) = trained(stream, bad, make(TopK, k=3))
    assert reason in outcome.stop_reason and outcome.n_steps < 10
    assert other.stop_reason is None
    assert equal(weights, trained(stream, make(TopK, k=3))[0][1])


def test_divergence_is_stopped():
    class Diverging(ReLU):
        def after_step(self, batch, step):
            with torch.no_grad():
                self.W_dec.mul_(3)

    (outcome, _), (other, _) = trained(FakeStream(), make(Diverging), make(ReLU))
    assert "diverged: the error is" in outcome.stop_reason
    assert other.stop_reason is None


def test_an_sae_that_does_nothing_for_long_is_stopped():
    class Silent(ReLU):
        def after_step(self, batch, step):
            with torch.no_grad():
                self.b_enc.fill_(0.0 if step.progress < 0.2 else -9.0)

    (outcome, _), (other, _) = trained(FakeStream(n_steps=200), make(Silent), make(ReLU))
    assert outcome.is_collapsed and not other.is_collapsed
    # silent after step 40; the first report of nothing but silence is that of steps 43 and 44
    assert "collapsed: L0 below 0.01 since step 44, 24 of 24 latents dead" in outcome.stop_reason
    assert outcome.n_steps == 94
    assert other.stop_reason is None


def test_an_sae_that_is_revived_in_time_goes_on():
    class Sleeping(ReLU):
        def after_step(self, batch, step):
            with torch.no_grad():
                self.b_enc.fill_(-9.0 if 0.2 < step.progress < 0.4 else 0.0)

    assert trained(FakeStream(n_steps=200), make(Sleeping))[0][0].stop_reason is None


def test_draws_from_the_global_generator_follow_from_seed_and_step_too():
    class Noisy(ReLU):
        def losses(self, batch, step):
            x = batch.x + 0.1 * torch.randn_like(batch.x)
            return {"reconstruction": (x - self(batch.x)).pow(2).sum(-1).mean()}

    stream, before = FakeStream(), torch.random.get_rng_state()
    (_, alone), *_ = trained(stream, make(Noisy))
    (_, first), _, (_, last) = trained(stream, make(Noisy), make(TopK, k=3), make(Noisy))
    assert equal(alone, first) and equal(alone, last)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_step_gives_other_random_numbers_per_purpose_step_and_seed():
    drawn = [
        torch.rand(4, generator=Step(0.5, 1.0, torch.zeros(1), number=i, seed=s).generator(use))
        for i, s, use in [(3, 0, "a"), (3, 0, "a"), (4, 0, "a"), (3, 1, "a"), (3, 0, "b")]
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])


def test_a_variant_may_count_by_itself_what_fired():
    class Counting(TopK):
        def losses(self, batch, step):
            terms = super().losses(batch, step)
            step.fired(torch.full((self.d_sae,), 2 * len(batch.x)))
            return terms

    (trainee,) = trainees(stream := FakeStream(n_steps=1), make(Counting, k=3))
    train_lockstep([trainee], stream)
    assert f"L0 {2 * D_SAE:.1f}" in trainee.note


def test_an_exception_at_the_start_stops_that_sae():
    class Broken(ReLU):
        def start(self, x):
            raise KeyError("median")

    assert "KeyError" in trained(FakeStream(), make(Broken))[0][0].stop_reason


def test_a_variant_with_a_training_of_its_own_gets_the_whole_stream():
    class Own(TopK):
        def train(self, stream=True):
            if isinstance(stream, bool):
                return super().train(stream)
            self.seen = torch.cat([batch.x for batch in stream])

    stream, own = FakeStream(), make(Own, k=3)
    (outcome, _), (other, _) = trained(stream, own, make(TopK, k=3))
    assert torch.equal(own.seen, stream.x)
    assert outcome == other == Outcome(stream.n_steps)


def test_training_a_variant_by_itself_is_the_loop():
    stream, variant = FakeStream(), make(TopK, k=3)
    outcome = variant.train(stream)
    assert outcome == Outcome(stream.n_steps)
    assert equal(variant.state_dict(), trained(stream, make(TopK, k=3))[0][1])
    assert variant.eval().training is False


def test_dead_latents_are_those_silent_for_the_window():
    seen = []

    class Spy(TopK):
        def losses(self, batch, step):
            seen.append((step.dead.clone(), step.n_dead, (self.encode(batch.x) != 0).any(0)))
            return super().losses(batch, step)

    stream = FakeStream(n_steps=60, dead_window_fraction=0.1)
    train_one(make(Spy, k=1, auxk_coef=0.0), stream)
    silent = torch.zeros(D_SAE, dtype=torch.long)
    n_ever_dead = 0
    for dead, n_dead, fired in seen:  # with 60 steps the dead are counted in every step
        assert torch.equal(dead, silent >= 6)
        assert n_dead == dead.sum()
        n_ever_dead += n_dead
        silent = torch.where(fired, 0, silent + 1)
    assert n_ever_dead > 0


def test_a_variant_that_does_without_encode_is_counted_too():
    class Direct(ReLU):
        def losses(self, batch, step):
            x_hat = self.decode(torch.relu(batch.x @ self.W_enc + self.b_enc))
            return {"reconstruction": (batch.x - x_hat).pow(2).sum(-1).mean()}

    stream = FakeStream(n_steps=1)
    (trainee,) = trainees(stream, make(Direct))
    f = trainee.variant.encode(stream.x)
    train_lockstep([trainee], stream)
    assert f"L0 {(f > 0).sum(-1).float().mean():.1f}" in trainee.note


def test_revived_latents_lose_their_moments_and_count_as_alive():
    class Reviving(TopK):
        def after_step(self, batch, step):
            super().after_step(batch, step)
            if round(step.progress * 40) == 30:
                self.dead_before = step.dead.clone()
                step.revive(step.dead)
                self.moments = {
                    name: trainee._optimiser.state[p]["exp_avg"].clone()
                    for name, p in self.named_parameters()
                }
            if round(step.progress * 40) == 31:
                self.dead_after = step.dead

    stream = FakeStream(n_steps=40, dead_window_fraction=0.1)
    (trainee,) = trainees(stream, make(Reviving, k=1, auxk_coef=0.0))
    train_lockstep([trainee], stream)
    variant = trainee.variant
    dead = variant.dead_before
    assert 0 < dead.sum() < D_SAE
    assert not (variant.dead_after & dead).any()
    for name, axis in Variant.latent_axis.items():
        moments = variant.moments[name].movedim(axis, 0)
        assert not moments[dead].any() and moments[~dead].any()


def test_the_log_has_each_term_by_name_averaged_over_its_steps(tmp_path):
    stream = FakeStream(n_steps=3 * N_REPORTS)
    values = []

    class Spy(TopK):
        def losses(self, batch, step):
            terms = super().losses(batch, step)
            values.append(terms["reconstruction"].item())
            return terms

    train_lockstep(trainees(stream, make(Spy, k=3), log=tmp_path / "loss.csv"), stream)
    with (tmp_path / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("step", "tokens", "reconstruction", "auxk", "loss", "grad_norm", "l0"),
        *("grad_ratio_auxk_W_enc", "grad_ratio_auxk_W_dec"),
        *("explained_variance", "n_dead"),
    ]
    assert [int(row["step"]) for row in rows] == list(range(3, 3 * N_REPORTS + 1, 3))
    assert int(rows[-1]["tokens"]) == stream.n_steps * 32
    assert float(rows[1]["reconstruction"]) == pytest.approx(sum(values[3:6]) / 3, rel=1e-5)
    assert float(rows[-1]["l0"]) == pytest.approx(3, abs=0.01)


WAITING = {
    torch.ops.aten._local_scalar_dense.default,  # item(), bool(), float(), int()
    torch.ops.aten.nonzero.default,  # its result has as many rows as the values say
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._unique2.default,
}


def test_the_log_says_how_hard_a_term_pulls(tmp_path):
    train_lockstep(
        trainees(FakeStream(n_steps=1), make(ReLU), log=tmp_path / "a.csv"), FakeStream(1)
    )
    with (tmp_path / "a.csv").open() as file:
        (row,) = csv.DictReader(file)
    variant, stream, norms = make(ReLU), FakeStream(1), {}
    variant.start(stream.sample)
    for name in ("reconstruction", "sparsity"):
        variant.zero_grad()
        (batch,) = stream
        variant.losses(batch, at(sparsity_warmup=1.0))[name].backward()
        norms[name] = variant.W_enc.grad.norm().item()
    assert float(row["grad_ratio_sparsity_W_enc"]) == pytest.approx(
        norms["sparsity"] / norms["reconstruction"], rel=1e-4
    )


class Waits(TorchDispatchMode):
    """Counts how often a value is fetched from the device."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func in WAITING
        return func(*args, **(kwargs or {}))


def test_the_device_is_waited_for_once_per_sae_and_report(monkeypatch):
    fetched = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: fetched.append(1) or tolist(self))
    stream = FakeStream(n_steps=4 * N_REPORTS)
    group = trainees(stream, make(Vanilla, resample_every=0.0), make(ReLU), make(TopK, k=3))
    with Waits() as counted:
        train_lockstep(group, stream)
    assert counted.n == 0
    assert len(fetched) == 3 * N_REPORTS


def test_a_wait_in_a_step_would_be_seen():
    class Waiting(TopK):
        def after_step(self, batch, step):
            super().after_step(batch, step)
            self.any_dead = bool(step.dead.any())

    with Waits() as counted:
        train_lockstep(trainees(stream := FakeStream(n_steps=9), make(Waiting, k=3)), stream)
    assert counted.n == 9


def test_learning_rate_rises_holds_and_falls():
    config = TrainConfig(d_sae=4, tokens=100, warmup_fraction=0.1, decay_from=0.8)
    factors = [lr_factor(config, i, 100) for i in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(factors[10:80]) == {1.0}
    assert factors[80:] == pytest.approx([(20 - i) / 20 for i in range(20)])
    flat = TrainConfig(d_sae=4, tokens=100, warmup_fraction=0.0, decay_from=1.0)
    assert {lr_factor(flat, i, 100) for i in range(100)} == {1.0}


def test_the_sparsity_penalty_warms_up_linearly():
    factors = []

    class Spy(ReLU):
        def losses(self, batch, step):
            factors.append(step.sparsity_warmup)
            return super().losses(batch, step)

    train_one(make(Spy), FakeStream(n_steps=20, sparsity_warmup_fraction=0.25))
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0] + [1.0] * 15)


def test_gradients_are_clipped():
    norms = []

    class Spy(ReLU):
        def after_step(self, batch, step):
            norms.append(torch.cat([p.grad.flatten() for p in self.parameters()]).norm().item())

    train_one(make(Spy, decoder_init_norm=1.0), FakeStream(n_steps=5, grad_clip=0.01))
    assert norms == pytest.approx([0.01] * 5, rel=1e-3)
    assert make(ReLU).d_in == D_IN
