"""SAELens's training classes with the weights of ours, and what a step of theirs gives."""

import torch
from torch import Tensor

from bench.variant import Step, Variant


def saelens_step(twin, x: Tensor, step: Step, **coefficients):
    """Their training step on x, and its gradients in the twin's parameters."""
    from sae_lens.saes.sae import TrainStepInput

    out = twin.training_forward_pass(
        TrainStepInput(x, coefficients, step.dead, n_training_steps=1, is_logging_step=False)
    )
    out.loss.backward()
    return out


def assert_same_gradients(sae: Variant, twin, *, renamed=None, radial: bool = True) -> None:
    """Gradients of ours equal theirs; without `radial`, as far as unit rows can move."""
    renamed = renamed or {}
    for name, parameter in sae.named_parameters():
        ours, theirs = parameter.grad, twin.get_parameter(renamed.get(name, name)).grad
        assert ours is not None and theirs is not None, name
        if name == "W_dec" and not radial:
            ours, theirs = (tangential(g, sae.W_dec) for g in (ours, theirs))
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def tangential(grad: Tensor, W: Tensor) -> Tensor:
    """What is left of a gradient when its part along the unit rows of W is taken out."""
    return grad - (grad * W).sum(-1, keepdim=True) * W


def exported_and_loaded(sae: Variant, tmp_path, scale: float = 1.0):
    """The SAE as plain sae_lens loads it from a file in its own format."""
    import json

    from sae_lens import SAE
    from safetensors.torch import save_file

    from bench.checkpoint import in_units_of_model

    exported = in_units_of_model(sae.export(), scale)
    config = {
        "architecture": exported.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "metadata": {"sae_lens_version": "6.0.0"},
        **exported.cfg,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in exported.state.items()}
    save_file(state, tmp_path / "sae_weights.safetensors")
    return SAE.load_from_disk(tmp_path)


def assert_saelens_agrees(sae: Variant, x: Tensor, tmp_path, scale: float = 3.0) -> None:
    """Plain sae_lens gives the same feature acts and output, in the units of x times `scale`."""
    loaded = exported_and_loaded(sae, tmp_path, scale)
    norms = sae.W_dec.detach().norm(dim=-1)
    with torch.no_grad():
        f = sae.encode(x)
        torch.testing.assert_close(loaded.encode(x * scale), f * norms * scale)
        torch.testing.assert_close(loaded(x * scale), sae(x) * scale)
    torch.testing.assert_close(loaded.W_dec.norm(dim=-1), torch.ones(sae.d_sae))
