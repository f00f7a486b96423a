"""The two sides of a race: our trainer, and the loops of SAELens and dictionary_learning.

Each trains N SAEs from the same weights on the same batches with Adam, at a constant learning rate,
with gradients clipped at norm 1, and tells how often each latent fired: what one step of theirs
does by default, without logging.
"""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.config import TrainConfig
from bench.trainee import Trainee
from bench.variant import Batch, Variant

LR = 3e-4
LONG = 10**6
"""Steps announced to a trainer, so that no schedule, report or end falls into a race."""

Weights = dict[str, Tensor]
"""W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]."""


class Side(Protocol):
    name: str

    def run(self, n_steps: int) -> None:
        """Take so many steps with every SAE."""
        ...

    def weights(self) -> Weights:
        """Those of the first SAE."""
        ...


class Ours:
    """bench.trainee.Trainee, in lockstep."""

    name = "ours"

    def __init__(
        self, make: Callable[[], Variant], start: Weights, batches: list[Tensor], n: int, dead: int
    ):
        config = TrainConfig(
            d_sae=len(start["b_enc"]),
            tokens=LONG * len(batches[0]),
            batch_size=len(batches[0]),
            lr=LR,
            warmup_fraction=0.0,
            sparsity_warmup_fraction=0.0,
            decay_from=1.0,
        )
        self._batches, self._step = cycle(batches), 0
        self._trainees = []
        for i in range(n):
            variant = make()
            variant.load_state_dict(start)
            trainee = Trainee(f"{i}", variant, config, LONG)
            trainee._dead[:dead] = True
            trainee._n_dead = dead
            self._trainees.append(trainee)

    def run(self, n_steps: int) -> None:
        for x in islice(self._batches, n_steps):
            for trainee in self._trainees:
                trainee.step(self._step, Batch(x))
                assert trainee.is_running, trainee.outcome.stop_reason
            self._step += 1

    def weights(self) -> Weights:
        return _copies(self._trainees[0].variant.state_dict())


class SAELensMulti:
    """`MultiSAETrainer.fit`."""

    name = "SAELens, MultiSAETrainer"

    def __init__(
        self, make: Callable[[], Any], start: Weights, batches: list[Tensor], n: int, dead: int
    ):
        from sae_lens.training.multi_sae_trainer import MultiSAETrainer

        saes = {f"{i}": _loaded(make(), start) for i in range(n)}
        self._trainer = MultiSAETrainer(
            _saelens_config(batches),
            saes,
            dict.fromkeys(saes, "hook"),
            ({"hook": x} for x in cycle(batches)),  # type: ignore[arg-type]
        )
        self._trainer.cfg.total_training_samples = 0  # `run` announces the steps
        for trainer in self._trainer.trainers.values():
            _mark_dead(trainer, dead)

    def run(self, n_steps: int) -> None:
        cfg = self._trainer.cfg
        cfg.total_training_samples += n_steps * cfg.train_batch_size_samples
        self._trainer.fit()

    def weights(self) -> Weights:
        return _copies(self._trainer.saes["0"].state_dict())


class SAELensSingle:
    """`SAETrainer.fit`, one SAE after the other."""

    name = "SAELens, one at a time"

    def __init__(
        self, make: Callable[[], Any], start: Weights, batches: list[Tensor], n: int, dead: int
    ):
        from sae_lens.training.sae_trainer import SAETrainer

        self._trainers = []
        for _ in range(n):
            sae = _loaded(make(), start)
            trainer = SAETrainer(_saelens_config(batches), sae, cycle(batches))
            trainer.cfg.total_training_samples = 0
            _mark_dead(trainer, dead)
            self._trainers.append(trainer)

    def run(self, n_steps: int) -> None:
        for trainer in self._trainers:
            trainer.cfg.total_training_samples += n_steps * trainer.cfg.train_batch_size_samples
            trainer.fit()

    def weights(self) -> Weights:
        return _copies(self._trainers[0].sae.state_dict())


class DictionaryLearning:
    """`trainer.update` of N trainers on each batch, as `training.trainSAE` calls it."""

    name = "dictionary_learning"

    def __init__(self, trainers: Callable[[], Any], start: Weights, batches: list[Tensor], n: int):
        self._batches, self._step = cycle(batches), 1  # in step 0 it moves b_dec to the median
        self._trainers = []
        for _ in range(n):
            trainer = trainers()
            ae = trainer.ae
            with torch.no_grad():
                ae.encoder.weight.copy_(start["W_enc"].T)
                ae.encoder.bias.copy_(start["b_enc"])
                ae.decoder.weight.copy_(start["W_dec"].T)
                self._bias(ae).copy_(start["b_dec"])
            self._trainers.append(trainer)

    def run(self, n_steps: int) -> None:
        for x in islice(self._batches, n_steps):
            for trainer in self._trainers:
                trainer.update(self._step, x)
            self._step += 1

    def weights(self) -> Weights:
        ae = self._trainers[0].ae
        weights = {
            "W_enc": ae.encoder.weight.T,
            "b_enc": ae.encoder.bias,
            "W_dec": ae.decoder.weight.T,
            "b_dec": self._bias(ae),
        }
        return _copies(weights)

    @staticmethod
    def _bias(ae: Any) -> Tensor:
        return ae.b_dec if hasattr(ae, "b_dec") else ae.bias


def batches_of(n_rows: int, d_in: int, n_batches: int = 4) -> Iterator[Tensor]:
    """Sparse sums of more directions than dimensions, of unit mean squared norm."""
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4 * d_in, d_in, generator=g), dim=-1)
    for _ in range(n_batches):
        active = torch.rand(n_rows, 4 * d_in, generator=g) < 16 / (4 * d_in)
        x = (active * torch.rand(n_rows, 4 * d_in, generator=g)) @ directions
        yield x / x.pow(2).sum(-1).mean().sqrt()


def _saelens_config(batches: list[Tensor]) -> Any:
    from sae_lens.config import SAETrainerConfig

    cfg = SAETrainerConfig(LONG * len(batches[0]), len(batches[0]), lr=LR, lr_end=LR)
    return cfg


def _loaded(sae: Any, start: Weights) -> Any:
    sae.load_state_dict(start)
    return sae


def _mark_dead(trainer: Any, n_dead: int) -> None:
    trainer.n_forward_passes_since_fired[:n_dead] = trainer.cfg.dead_feature_window + 1


def _copies(weights: dict[str, Tensor]) -> Weights:
    return {name: weights[name].detach().clone() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
