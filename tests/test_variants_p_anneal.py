"""p_anneal against dictionary_learning's PAnnealTrainer and a literal loop, and numbers by hand."""

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make, set_weights

from bench.train import train_one
from bench.variant import Batch
from variants.p_anneal import PAnneal

N_STEPS = 40


def penalties(sae, x, n_steps=N_STEPS):
    """What ours adds to the loss in each step, its weights standing still."""
    found = []
    for i in range(n_steps):
        step = at(number=i, length=1 / n_steps, progress=i / n_steps)
        found.append(sae.losses(Batch(x[i]), step)["sparsity"].item())
        set_weights(sae, W_dec=sae.W_dec)  # a version of the weights that no step has moved
        sae.after_step(Batch(x[i]), step)
    return found


def literal(f, cfg, n_steps=N_STEPS):
    """The published schedule, one step after the other. f [n_steps, n, d_sae]."""
    at_steps = torch.linspace(
        int(cfg.anneal_from * n_steps), n_steps, cfg.n_updates, dtype=torch.int
    )
    values = torch.linspace(cfg.p_start, cfg.p_end, cfg.n_updates)
    p, next_p, coef, n_done, queue, found = cfg.p_start, None, cfg.l1, 0, [], []

    def norm(acts, p):
        total = sum(acts[:, j][acts[:, j] > 0].pow(p).sum() for j in range(acts.shape[1]))
        if not cfg.root:
            return (total / len(acts)).item()
        rows = torch.stack([row[row > 0].pow(p).sum() for row in acts])
        return rows.pow(1 / p).mean().item()

    for i, acts in enumerate(f):
        found.append(coef * norm(acts, p))
        if next_p is not None:
            queue = [*queue, (norm(acts, p), norm(acts, next_p))][-cfg.queue :]
        if i in at_steps.tolist():
            if next_p is not None:
                now, later = (sum(q[j] for q in queue) / len(queue) for j in (0, 1))
                coef *= now / later
            p = values[n_done].item()
            next_p = values[n_done + 1].item() if n_done + 1 < len(values) else cfg.p_end
            n_done += 1
    return found


@pytest.mark.parametrize("root", [False, True])
def test_the_penalty_of_every_step_equals_a_literal_loop(root):
    sae = make(PAnneal, l1=0.3, n_updates=4, queue=3, anneal_from=0.2, root=root)
    x = activations(N_STEPS * 16).view(N_STEPS, 16, D_IN)
    f = sae.encode(x).detach()
    expected = literal(f, sae.cfg)
    assert penalties(sae, x) == pytest.approx(expected, rel=1e-4)
    assert sae.coef.item() != pytest.approx(0.3)


@pytest.mark.parametrize("root", [False, True])
def test_losses_equal_dictionary_learning(root):
    from dictionary_learning.trainers.p_anneal import PAnnealTrainer  # takes seconds

    sae = make(PAnneal, l1=0.3, n_updates=4, queue=3, anneal_from=0.2, root=root)
    trainer = PAnnealTrainer(
        steps=N_STEPS,
        activation_dim=D_IN,
        dict_size=D_SAE,
        layer=0,
        lm_name="none",
        initial_sparsity_penalty=0.3,
        anneal_start=8,
        p_end=0.2,
        n_sparsity_updates=4,
        sparsity_queue_length=3,
        sparsity_function="Lp" if root else "Lp^p",
        sparsity_warmup_steps=None,
        warmup_steps=1,
        device="cpu",
    )
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(sae.W_enc.T)
        trainer.ae.encoder.bias.copy_(sae.b_enc)
        trainer.ae.decoder.weight.copy_(sae.W_dec.T)
        trainer.ae.bias.copy_(sae.b_dec)
    x = activations(N_STEPS * 16).view(N_STEPS, 16, D_IN)
    for i in range(N_STEPS):
        step = at(number=i, length=1 / N_STEPS)
        ours = sum(sae.losses(Batch(x[i]), step).values())
        theirs = trainer.loss(x[i], step=i)
        torch.testing.assert_close(ours, theirs)
        sae.zero_grad()
        trainer.optimizer.zero_grad()
        ours.backward()
        theirs.backward()
        torch.testing.assert_close(sae.W_enc.grad, trainer.ae.encoder.weight.grad.T)
        torch.testing.assert_close(sae.W_dec.grad, trainer.ae.decoder.weight.grad.T)
        sae.after_step(Batch(x[i]), step)


def test_a_number_by_hand():
    sae = make(PAnneal, d_in=2, d_sae=2, l1=0.5, p_start=0.5, p_end=0.5)
    set_weights(sae, W_enc=torch.eye(2), W_dec=torch.eye(2))
    x = torch.tensor([[4.0, 9.0], [1.0, -1.0]])
    losses = sae.losses(Batch(x), at(2, length=0.1))
    assert losses["sparsity"].item() == pytest.approx(0.5 * ((2 + 3) + 1) / 2)
    assert losses["reconstruction"].item() == pytest.approx(0.5)


def test_no_latent_however_weak_has_a_gradient_without_bound():
    sae = make(PAnneal, d_in=1, d_sae=1, p_start=0.2, p_end=0.2)
    set_weights(sae, W_enc=[[1.0]], W_dec=[[1.0]])
    for x in (0.0, 1e-30, 1e-7):
        sae.zero_grad()
        sum(sae.losses(Batch(torch.tensor([[x]])), at(1, length=0.1)).values()).backward()
        assert sae.b_enc.grad.abs().item() < 1


def test_training_explains_the_variance_with_unit_rows():
    sae, stream = make(PAnneal, l1=0.01), FakeStream(n_steps=200)
    assert train_one(sae, stream).stop_reason is None
    error = (stream.x - sae(stream.x)).pow(2).sum()
    assert error < 0.2 * (stream.x - stream.x.mean(0)).pow(2).sum()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"l1": -1.0}, "l1=-1.0"),
        ({"p_end": 0.0}, "p_end=0.0"),
        ({"p_end": 1.5}, "p_end=1.5"),
        ({"anneal_from": 2.0}, "anneal_from=2.0"),
        ({"queue": 0}, "queue=0"),
    ],
)
def test_a_bad_value_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        PAnneal.Config(**config)
