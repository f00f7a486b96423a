"""What changes in the course of training, as a function of the step alone: nothing to be saved."""

from bench.config import TrainConfig


def lr_factor(config: TrainConfig, i: int, n_steps: int) -> float:
    """Share of the peak learning rate in step `i`: a linear rise, flat, a linear fall to 0."""
    warmup, decay_from = config.warmup_fraction * n_steps, config.decay_from * n_steps
    rise = (i + 1) / warmup if warmup else 1.0
    fall = (n_steps - i) / (n_steps - decay_from) if decay_from < n_steps else 1.0
    return min(1.0, rise, fall)


def sparsity_factor(config: TrainConfig, i: int, n_steps: int) -> float:
    """Share of a sparsity penalty that counts in step `i`: a linear rise to 1."""
    warmup = config.sparsity_warmup_fraction * n_steps
    return min(1.0, (i + 1) / warmup) if warmup else 1.0


def report_every(n_steps: int, n_reports: int) -> int:
    """Steps between two of about `n_reports` reports."""
    return max(1, n_steps // n_reports)


def checkpoint_every(config: TrainConfig, n_steps: int, n_reports: int) -> int:
    """Steps between two checkpoints, a multiple of those between reports; 0 = never."""
    every = report_every(n_steps, n_reports)
    n_between = round(config.checkpoint_every * n_steps / every)
    return every * max(1, n_between) if config.checkpoint_every else 0
