"""vanilla against dictionary_learning's StandardTrainer."""

import torch
from training import D_IN, D_SAE, activations, at, make, set_weights

from bench.variant import Batch
from variants.vanilla import Vanilla


def test_vanilla_with_a_squared_error_equals_the_standard_trainer():
    from dictionary_learning.trainers.standard import StandardTrainer  # takes seconds

    sae, x = make(Vanilla, l1=0.3, squared=True), activations(64)
    set_weights(sae, b_enc=torch.linspace(-0.3, 0.3, D_SAE), b_dec=torch.full((D_IN,), 0.1))
    trainer = StandardTrainer(
        steps=10,
        activation_dim=D_IN,
        dict_size=D_SAE,
        layer=0,
        lm_name="none",
        l1_penalty=0.3,
        warmup_steps=1,
        sparsity_warmup_steps=None,
        device="cpu",
    )
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(sae.W_enc.T)
        trainer.ae.encoder.bias.copy_(sae.b_enc)
        trainer.ae.decoder.weight.copy_(sae.W_dec.T)
        trainer.ae.bias.copy_(sae.b_dec)
    ours, theirs = sum(sae.losses(Batch(x), at()).values()), trainer.loss(x, step=0)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(sae.encode(x), trainer.ae.encode(x))
    ours.backward()
    theirs.backward()
    for mine, other in (
        (sae.W_enc.grad, trainer.ae.encoder.weight.grad.T),
        (sae.W_dec.grad, trainer.ae.decoder.weight.grad.T),
        (sae.b_enc.grad, trainer.ae.encoder.bias.grad),
        (sae.b_dec.grad, trainer.ae.bias.grad),
    ):
        torch.testing.assert_close(mine, other)
