"""What the engines read of the suite's Config, and its form in sae_bench."""

from typing import Any, Protocol

CORPUS = "bio-forget-corpus"
"""sae_bench's text of what is to be forgotten."""
RETAIN = "wikitext"
"""sae_bench's text of what is to be kept."""
PROMPT_NAME = "gemma-2-2b-it"
"""sae_bench 0.6.0 has a prompt for this name (and its 9b sibling) only."""
SAEBENCH_FIELDS = (
    "dataset_names",
    "retain_thresholds",
    "n_features_list",
    "multipliers",
    "dataset_size",
    "seq_len",
    "llm_batch_size",
)
"""The fields that are sae_bench's own."""


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
    def relative_multipliers(self) -> tuple[float, ...]: ...
    @property
    def dataset_size(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def llm_batch_size(self) -> int: ...
    @property
    def min_questions(self) -> int: ...
    @property
    def forget(self) -> str: ...
    @property
    def retain(self) -> str: ...


def questions_per_call(cfg: UnlearningConfig) -> int:
    """As many as sae_bench asks at a time: they are shorter than its sequences."""
    return 2 * cfg.llm_batch_size


def for_saebench(cfg: UnlearningConfig, seed: int, dtype: str) -> Any:
    """As sae_bench wants it."""
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig

    settings: dict[str, Any] = {}
    for name in SAEBENCH_FIELDS:
        value = getattr(cfg, name)
        settings[name] = list(value) if isinstance(value, tuple) else value
    return UnlearningEvalConfig(
        random_seed=seed, model_name=PROMPT_NAME, llm_dtype=dtype, **settings
    )
