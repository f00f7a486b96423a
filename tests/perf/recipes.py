"""Other libraries' objectives as variants of ours, so that all sides race with the same maths."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import ops
from bench.variant import Batch, Exported, Step, Variant


@dataclass(frozen=True)
class L1Config:
    l1: float = 0.1


class CentredReLU(Variant):
    """SAELens's `standard` as it comes, and dictionary_learning's April update."""

    Config = L1Config

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        norms = torch.linalg.vector_norm(self.W_dec, dim=-1)
        fit = ops.relu_autoencoder(
            batch.x,
            self.W_enc,
            self.b_enc,
            self.W_dec,
            self.b_dec,
            origin=self.b_dec,
            price=norms,
        )
        step.fired(fit.fired)
        return {
            "reconstruction": ops.squared_error(batch.x, fit.x_hat),
            "sparsity": self.cfg.l1 * fit.l1,
        }

    def export(self) -> Exported:
        raise NotImplementedError


@dataclass(frozen=True)
class FreeTopKConfig:
    k: int = 32
    rescale: bool = True


class FreeTopK(Variant):
    """SAELens's `topk`: free decoder norms, and AuxK that is not rectified, with coefficient 1."""

    Config = FreeTopKConfig

    def encode(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        W_enc, b_enc, _ = self._rescaled()
        return ops.keep_top_k((x - self.b_dec) @ W_enc + b_enc, self.cfg.k)

    def decode(self, f: Tensor) -> Tensor:
        return f @ self._rescaled()[2] + self.b_dec

    def losses(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        x, k, origin = batch.x, self.cfg.k, self.b_dec
        W_enc, b_enc, W_dec = self._rescaled()
        fit = ops.topk_autoencoder(x, W_enc, b_enc, W_dec, self.b_dec, k, origin=origin)
        step.fired(fit.fired)
        terms = {"reconstruction": ops.squared_error(x, fit.x_hat)}
        if step.n_dead:
            most = self.d_in // 2
            dead = step.dead.int().topk(step.n_dead, sorted=False).indices
            aux = ops.topk_autoencoder(
                x,
                W_enc[:, dead],
                b_enc[dead],
                W_dec[dead],
                torch.zeros_like(self.b_dec),
                min(most, step.n_dead),
                origin=origin,
                rectify=False,
            )
            error = ops.squared_error((x - fit.x_hat).detach(), aux.x_hat)
            terms["auxk"] = min(step.n_dead / most, 1.0) * error
        return terms

    def export(self) -> Exported:
        raise NotImplementedError

    def _rescaled(self) -> tuple[Tensor, Tensor, Tensor]:
        """The norms in the encoder instead of in the decoder."""
        if not self.cfg.rescale:
            return self.W_enc, self.b_enc, self.W_dec
        norms = torch.linalg.vector_norm(self.W_dec, dim=-1)
        return self.W_enc * norms, self.b_enc * norms, self.W_dec / norms[:, None]
