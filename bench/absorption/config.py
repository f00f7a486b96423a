"""What the engines read of the suite's Config, and its form in sae_bench."""

from dataclasses import asdict
from typing import Any, Protocol

from bench.context import EvalContext


class AbsorptionConfig(Protocol):
    """The fields of `suites.absorption.AbsorptionSuite.Config`, where they are explained."""

    @property
    def f1_jump_threshold(self) -> float: ...
    @property
    def max_k_value(self) -> int: ...
    @property
    def prompt_template(self) -> str: ...
    @property
    def prompt_token_pos(self) -> int: ...
    @property
    def llm_batch_size(self) -> int: ...
    @property
    def k_sparse_probe_l1_decay(self) -> float: ...
    @property
    def k_sparse_probe_batch_size(self) -> int: ...
    @property
    def k_sparse_probe_num_epochs(self) -> int: ...
    @property
    def min_GT_probe_f1(self) -> float: ...
    @property
    def min_feats_for_eval(self) -> int: ...


def for_saebench(cfg: AbsorptionConfig, ctx: EvalContext) -> Any:
    """As sae_bench wants it."""
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig

    return AbsorptionEvalConfig(
        model_name=ctx.spec.name,
        random_seed=ctx.seed,
        llm_dtype=ctx.dtype,
        **asdict(cfg),  # type: ignore[call-overload]
    )


def too_few(cfg: AbsorptionConfig, ctx: EvalContext, n_letters: int) -> RuntimeError:
    """Why there is no score: sae_bench prints a line and stops."""
    return RuntimeError(
        f"only {n_letters} letters can be read off model {ctx.spec.name!r} with F1 above "
        f"{cfg.min_GT_probe_f1:g}, min_feats_for_eval={cfg.min_feats_for_eval}"
    )
