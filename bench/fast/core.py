"""core for many SAEs: each batch goes through the language model once, then through every SAE.

Every number that sae_bench computes comes out bit for bit (evals/core/main.py of sae_bench 0.6.0):
the operations on an SAE's tensors are its own, in its order and on its shapes. What differs:

- the clean pass, its softmax and what depends on x alone are computed once for all SAEs;
- a pass with an SAE's reconstruction starts at the hook;
- with the residual stream set to zero the logits depend neither on the tokens nor, but for
  rounding, on the position, so one pass over one context of zeros replaces one pass per batch;
- counts of active latents are taken without copies of the [B, T, d_sae] activations.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.counters import Work
from bench.fast.part import Part
from bench.fast.resume import Clean, HookPoint
from bench.moments import BatchMoments, Corrections, counted, divergence, sums
from bench.suite import SaeHandle

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_NORM = 0.0001
"""sae_bench divides by 1 where the norm of x is below."""
COLUMNS = 100
"""Decoder or encoder vectors that are compared with all others at a time."""

BEHAVIOUR, PERFORMANCE = "model_behavior_preservation", "model_performance_preservation"
MEANS = {
    BEHAVIOUR: ("kl_div_with_ablation", "kl_div_with_sae"),
    PERFORMANCE: ("ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"),
    "reconstruction_quality": ("explained_variance_legacy", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
}
"""sae_bench's metrics that are means over all tokens, by its groups."""

Values = defaultdict[str, "list[Tensor]"]


class Plan(NamedTuple):
    """What is evaluated on which tokens."""

    reconstruction: "Tensor"
    """[n_batches, B, T] token ids for the losses."""
    variance: "Tensor"
    """[n_batches, B, T] token ids for reconstruction and sparsity."""
    ignored: set[int | None]
    """Ids of tokens that do not count."""
    keep_special: bool
    """Leave the model's own activations at ignored tokens."""


@dataclass
class Evaluation:
    """One SAE on its way through the batches."""

    handle: SaeHandle
    sae: Any
    """In the precision of the language model."""
    part: Part
    values: Values = field(default_factory=lambda: defaultdict(list))
    """sae_bench's per-token values, by its names."""
    ours: Corrections = field(default_factory=Corrections)
    fired: "Tensor | float" = 0.0
    """[d_sae] tokens on which each latent fired."""
    fired_in: "Tensor | float" = 0.0
    """[d_sae] contexts in which it fired."""

    def scalars(self, plan: Plan, shared: Values) -> dict[str, dict[str, Any]]:
        """sae_bench's metrics of this SAE, by group. ZeroDivisionError where sae_bench has it."""
        rows = self.values | shared
        means = {
            group: {name: _mean(rows[name]) for name in names} for group, names in MEANS.items()
        }
        behaviour, performance = means[BEHAVIOUR], means[PERFORMANCE]
        ablated = behaviour["kl_div_with_ablation"]
        kept = ablated - behaviour["kl_div_with_sae"]
        behaviour["kl_div_score"] = kept / ablated
        ablated = performance["ce_loss_with_ablation"]
        kept = ablated - performance["ce_loss_with_sae"]
        performance["ce_loss_score"] = kept / (ablated - performance["ce_loss_without_sae"])
        means["reconstruction_quality"]["explained_variance"] = _explained_variance(rows)
        tokens = {
            "total_tokens_eval_reconstruction": plan.reconstruction.numel(),
            "total_tokens_eval_sparsity_variance": plan.variance.numel(),
        }
        return means | {"token_stats": tokens}


class Result(NamedTuple):
    """What sae_bench would have returned for one SAE, and what we add."""

    handle: SaeHandle
    part: Part
    scalars: dict[str, dict[str, Any]]
    features: dict[str, list[float]]
    ours: Corrections


def evaluate(
    point: HookPoint, plan: Plan, saes: Sequence[tuple[SaeHandle, Any]], total: Work
) -> list[Result]:
    """One result per SAE (handle, SAE in the model's precision), in order; all at this hook.

    `total` counts what the model and the SAEs do.
    """
    import torch

    with torch.no_grad():
        evaluations = [Evaluation(handle, sae, Part(total)) for handle, sae in saes]
        shared: Values = defaultdict(list)
        _behaviour(point, plan, evaluations, shared)
        n_tokens = _reconstruction(point, plan, evaluations, shared)
        return [_result(one, plan, shared, n_tokens) for one in evaluations]


def _result(one: Evaluation, plan: Plan, shared: Values, n_tokens: "Tensor") -> Result:
    scalars, features = {}, {}
    if one.part.error is None:
        with one.part:
            scalars = one.scalars(plan, shared)
            features = {
                "feature_density": (one.fired / n_tokens).tolist(),  # type: ignore[union-attr]
                "consistent_activation_heuristic": (one.fired / one.fired_in).tolist(),  # type: ignore[union-attr]
                **weight_metrics(one.sae),
            }
    return Result(one.handle, one.part, scalars, features, one.ours)


def _behaviour(point: HookPoint, plan: Plan, evaluations: list[Evaluation], shared: Values) -> None:
    """Cross-entropy and KL divergence with each SAE in place (get_recons_loss)."""
    import torch

    zeroed = _zero_ablated(point, plan.reconstruction)
    for tokens in plan.reconstruction:
        clean = point.clean(tokens)
        mask = counted(tokens, plan.ignored)
        if not point.is_residual:
            zeroed = point.onwards(clean.start, torch.zeros_like(clean.x), tokens)
        replaced = mask if plan.keep_special else torch.ones_like(mask)
        before = _Predictions.of(clean.logits)
        kl_ablated, exact_ablated, ce_ablated = before.against(zeroed, tokens)
        ce_clean = cross_entropy(before.exact_log_p, tokens)
        shared["kl_div_with_ablation"].append(kl_ablated[mask])
        shared["ce_loss_without_sae"].append(ce_clean[mask[:, :-1]])
        shared["ce_loss_with_ablation"].append(ce_ablated[mask[:, :-1]])
        for one in (e for e in evaluations if e.part.error is None):
            with one.part:
                logits = _with_sae(point, clean, one.sae, replaced, tokens)
                kl, exact, ce = before.against(logits, tokens)
                one.values["kl_div_with_sae"].append(kl[mask])
                one.values["ce_loss_with_sae"].append(ce[mask[:, :-1]])
                one.ours.divergence.add(exact, exact_ablated, mask)
                losses = {
                    "ce_loss_with_sae": ce,
                    "ce_loss_without_sae": ce_clean,
                    "ce_loss_with_ablation": ce_ablated,
                }
                one.ours.losses.add(losses, mask)


def _with_sae(
    point: HookPoint, clean: Clean, sae: Any, replaced: "Tensor", tokens: "Tensor"
) -> "Tensor":
    """Logits with the reconstruction where `replaced` [B, T]."""
    import torch

    x_hat = sae.decode(sae.encode(clean.x)).to(clean.x.dtype)
    return point.onwards(clean.start, torch.where(replaced[..., None], x_hat, clean.x), tokens)


def _zero_ablated(point: HookPoint, batches: "Tensor") -> "Tensor":
    """Logits [1, T, d_vocab] with zeros in the residual stream: the same for all tokens.

    Equal residuals at all positions give equal keys and values, so attention changes nothing.
    """
    tokens = batches[0, :1]
    zeros = point.model.W_E.new_zeros(*tokens.shape, point.model.cfg.d_model)
    return point.onwards(zeros, zeros, tokens)


class _Predictions(NamedTuple):
    """Next-token distributions of the clean pass, [B, T, d_vocab] each."""

    p: "Tensor"
    log_p: "Tensor"
    """As sae_bench takes it: the logarithm of the softmax."""
    exact_log_p: "Tensor"

    @classmethod
    def of(cls, logits: "Tensor") -> "_Predictions":
        p = logits.softmax(-1)
        return cls(p, p.log(), logits.log_softmax(-1))

    def against(self, logits: "Tensor", tokens: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        """sae_bench's KL [B, T], the exact KL [B, T] and cross-entropy [B, T - 1] of `logits`.

        `logits` [B or 1, T, d_vocab]. Context by context, so that temporaries stay small.
        """
        import torch

        rows = [self._row(i, logits[i % len(logits)], tokens[i]) for i in range(len(tokens))]
        kl, exact, ce = zip(*rows)
        return torch.stack(kl), torch.stack(exact), torch.stack(ce)

    def _row(self, i: int, logits: "Tensor", tokens: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        log_q, exact_log_q = logits.softmax(-1).log_(), logits.log_softmax(-1)
        kl = divergence(self.p[i], self.log_p[i], log_q)
        exact = divergence(self.p[i], self.exact_log_p[i], exact_log_q)
        return kl, exact, cross_entropy(exact_log_q, tokens)


def cross_entropy(log_p: "Tensor", tokens: "Tensor") -> "Tensor":
    """log_p [..., T, d_vocab], tokens [..., T] -> nats [..., T - 1] of each next token."""
    return -log_p[..., :-1, :].gather(-1, tokens[..., 1:, None])[..., 0]


def _reconstruction(
    point: HookPoint, plan: Plan, evaluations: list[Evaluation], shared: Values
) -> "Tensor":
    """Errors, norms and sparsity (get_sparsity_and_variance_metrics); the number of tokens."""
    import torch

    n_tokens = torch.tensor(0, device=plan.variance.device)
    for tokens in plan.variance:
        x = point.up_to(tokens)
        mask = counted(tokens, plan.ignored)
        n_tokens += mask.sum()
        inputs = _Inputs.of(x, mask)
        shared["l2_norm_in"].append(inputs.norm)
        shared["mean_sum_of_squares"].append(inputs.x.pow(2).sum(dim=-1).mean(dim=0))
        shared["mean_act_per_dimension"].append(inputs.x.pow(2).mean(dim=0))
        for one in (e for e in evaluations if e.part.error is None):
            with one.part:
                f = one.sae.encode(x)  # [B, T, d_sae]
                x_hat = one.sae.decode(f).to(x.device)
                _add_errors(one, inputs, x_hat.flatten(0, 1)[inputs.rows])
                _add_sparsity(one, f, mask)
    return n_tokens


class _Inputs(NamedTuple):
    """What every SAE is compared with in one batch: the n tokens that count."""

    rows: "Tensor"
    """[B * T] bool"""
    x: "Tensor"
    """[n, d_in]"""
    norm: "Tensor"
    """[n]"""
    divisor: "Tensor"
    """[n] the norm, 1 where it is tiny."""
    direction: "Tensor"
    """[n, d_in]"""
    spread: "Tensor"
    """[n] squared distance from the batch mean."""
    moments: BatchMoments

    @classmethod
    def of(cls, x: "Tensor", mask: "Tensor") -> "_Inputs":
        """x [B, T, d_in], mask [B, T]."""
        import torch

        rows = mask.flatten()
        x = x.flatten(0, 1)[rows]
        norm = torch.norm(x, dim=-1)
        divisor = norm.clone()
        divisor[torch.abs(divisor) < SMALLEST_NORM] = 1
        direction = x / torch.norm(x, dim=-1, keepdim=True)
        spread = (x - x.mean(dim=0)).pow(2).sum(dim=-1)
        return cls(rows, x, norm, divisor, direction, spread, sums(x))


def _add_errors(one: Evaluation, inputs: _Inputs, x_hat: "Tensor") -> None:
    """x_hat [n, d_in]."""
    import torch

    norm = torch.norm(x_hat, dim=-1)
    dot = (inputs.x * x_hat).sum(dim=-1)
    error = (inputs.x - x_hat).pow(2).sum(dim=-1)
    direction = x_hat / torch.norm(x_hat, dim=-1, keepdim=True)
    new = {
        "l2_norm_out": norm,
        "l2_ratio": norm / inputs.divisor,
        "relative_reconstruction_bias": ((norm**2).mean() / dot.mean()).unsqueeze(0),
        "explained_variance_legacy": 1 - error / inputs.spread,
        "mse": error / inputs.rows.sum(),
        "cossim": (inputs.direction * direction).sum(dim=-1),
        "mean_sum_of_resid_squared": error.mean(dim=0),
    }
    for name, value in new.items():
        one.values[name].append(value)
    one.ours.moments.add_to(inputs.moments, inputs.x, x_hat)


def _add_sparsity(one: Evaluation, f: "Tensor", mask: "Tensor") -> None:
    """f [B, T, d_sae], mask [B, T]."""
    import torch

    # sums of ones are exact in float32; a comparison and a sum of bool take five times as long
    signs = f.sign().float()
    one.values["l0"].append(signs.abs().sum(dim=-1)[mask])
    one.values["l1"].append(f.sum(dim=-1)[mask])
    fired = torch.bmm(mask.float()[:, None, :], signs.clamp_(min=0))[:, 0]  # [B, d_sae]
    one.fired = one.fired + fired.sum(dim=0)
    one.fired_in = one.fired_in + (fired > 0).sum(dim=0)


def _mean(rows: "list[Tensor]") -> float:
    import torch

    return torch.cat(rows).mean().item()


def _explained_variance(rows: "dict[str, list[Tensor]]") -> float:
    """sae_bench's, which takes E[x^2] for E[x]."""
    import torch

    residual = torch.stack(rows["mean_sum_of_resid_squared"]).mean(dim=0)
    squares = torch.stack(rows["mean_sum_of_squares"]).mean(dim=0)
    means = torch.cat(rows["mean_act_per_dimension"]).mean(dim=0)
    return (1 - residual / (squares - means**2)).item()


def weight_metrics(sae: Any) -> dict[str, list[float]]:
    """What the weights alone say of each latent (get_featurewise_weight_based_metrics)."""
    import torch

    encoders = (sae.W_enc / sae.W_enc.norm(dim=0, keepdim=True)).cpu()
    decoders = (sae.W_dec.T / sae.W_dec.T.norm(dim=0, keepdim=True)).cpu()
    similarity = torch.nn.functional.cosine_similarity(decoders.T, encoders.T)
    return {
        "encoder_bias": _encoder_bias(sae),
        "encoder_norm": sae.W_enc.norm(dim=-2).cpu().tolist(),
        "encoder_decoder_cosine_sim": similarity.cpu().tolist(),
        "max_encoder_cosine_sim": largest_similarities(sae.W_enc).cpu().tolist(),
        "max_decoder_cosine_sim": largest_similarities(sae.W_dec.T).cpu().tolist(),
    }


def _encoder_bias(sae: Any) -> list[float]:
    for name in ("b_enc", "b_mag"):  # a gated SAE's b_enc is None
        if (bias := getattr(sae, name, None)) is not None:
            return bias.cpu().tolist()
    return [0.0] * sae.cfg.d_sae


def largest_similarities(vectors: "Tensor") -> "Tensor":
    """vectors [d_in, d_sae] -> [d_sae] cosine of each column with the one most like it."""
    import torch

    unit = torch.nn.functional.normalize(vectors, p=2, dim=0)
    n = unit.shape[1]
    largest = unit.new_empty(n)
    for start in range(0, n, COLUMNS):
        end = min(start + COLUMNS, n)
        similarity = unit[:, start:end].t() @ unit  # [columns, d_sae]
        similarity.diagonal(start).fill_(float("-inf"))
        largest[start:end] = similarity.max(dim=1).values
    return largest
