"""Control SAEs: what a trained SAE must beat, shown beside it and never ranked."""

import torch
from torch import Tensor

from bench import ops
from bench.config import ControlConfig
from bench.errors import UserError
from bench.variant import Exported

NAMES = ("random", "mean")
NEVER = -1e9
"""An encoder bias that no activation overcomes."""


def check(control: ControlConfig) -> None:
    """Raise UserError if the control lacks a target L0 that it needs, or has one without use."""
    if control.name == "random" and control.target_l0 is None:
        raise UserError("control 'random': needs a target_l0, the number of latents it may use")
    if control.name == "mean" and control.target_l0 is not None:
        raise UserError("control 'mean': no latent of it fires, leave target_l0 out")


def make(control: ControlConfig, x: Tensor, d_sae: int, seed: int) -> Exported:
    """The control as a SAELens SAE in the units of x [n, d_in], some training activations."""
    generator = ops.generator(seed, "rows of a control")
    rows = torch.randn(d_sae, x.shape[1], generator=generator).to(x.device)
    ops.normalise_rows_(rows)
    if control.name == "mean":
        return mean_only(x, rows)
    assert control.target_l0 is not None  # checked before anything was trained
    return random_dictionary(x, rows, n_active(control))


def n_active(control: ControlConfig) -> int:
    """Latents per token of a control with a target L0, a whole number."""
    return max(1, round(control.target_l0 or 0))


def random_dictionary(x: Tensor, rows: Tensor, k: int) -> Exported:
    """Untrained unit `rows` [d_sae, d_in], encoder their transpose on centred input, top k kept.

    One gain on the encoder is fitted to x by least squares: correlated rows would otherwise
    overshoot, and any trained SAE would win by the size of its output alone.
    """
    mean = x.mean(0)
    x_hat = ops.keep_top_k((x - mean) @ rows.T, k) @ rows
    gain = ((x - mean) * x_hat).sum() / x_hat.pow(2).sum().clamp_min(ops.TINY)
    state = {
        "W_enc": gain * rows.T,
        "b_enc": torch.zeros(len(rows), device=x.device),
        "W_dec": rows,
        "b_dec": mean,
    }
    return Exported("topk", {"k": k, "apply_b_dec_to_input": True}, state)


def mean_only(x: Tensor, rows: Tensor) -> Exported:
    """Predicts the mean of x for every token. Its `rows` [d_sae, d_in] are never used.

    They are random and not zero because sae_bench divides by the norms of both weight matrices.
    """
    state = {
        "W_enc": rows.T.clone(),
        "b_enc": torch.full((len(rows),), NEVER, device=x.device),
        "W_dec": rows,
        "b_dec": x.mean(0),
    }
    return Exported("standard", {"apply_b_dec_to_input": True}, state)
