"""What the engines read of the suite's Config, and its form in sae_bench."""

from dataclasses import asdict
from typing import Any, Protocol

PROMPT_NAME = "gemma-2-2b-it"
"""sae_bench 0.6.0 has a prompt for this name (and its 9b sibling) only."""


class UnlearningConfig(Protocol):
    """The fields of `suites.unlearning.UnlearningSuite.Config`, where they are explained."""

    @property
    def dataset_names(self) -> tuple[str, ...]: ...
    @property
    def retain_thresholds(self) -> tuple[float, ...]: ...
    @property
    def n_features_list(self) -> tuple[int, ...]: ...
    @property
    def multipliers(self) -> tuple[int, ...]: ...
    @property
    def dataset_size(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def llm_batch_size(self) -> int: ...


def questions_per_call(cfg: UnlearningConfig) -> int:
    """As many as sae_bench asks at a time: they are shorter than its sequences."""
    return 2 * cfg.llm_batch_size


def for_saebench(cfg: UnlearningConfig, seed: int, dtype: str) -> Any:
    """As sae_bench wants it."""
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig

    settings: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(cfg).items()  # type: ignore[call-overload]
    }
    return UnlearningEvalConfig(
        random_seed=seed, model_name=PROMPT_NAME, llm_dtype=dtype, **settings
    )
