"""The token batches that core evaluates on: SAELens's stream, read and tokenised once."""

from typing import TYPE_CHECKING, Any, NamedTuple

from bench.context import EvalContext, reading

if TYPE_CHECKING:
    from torch import Tensor

STORE = "sae_lens.training.activations_store"
SHUFFLE_SEED = 42
"""sae_bench's, of the files of a data set."""


class Stream(NamedTuple):
    """What decides the tokens beside model and data."""

    dataset: str
    """Hub id of the text."""
    context_size: int
    """Tokens per context."""
    prepend_bos: bool
    seqpos_slice: tuple[int | None, ...]
    """Positions that the SAE was trained on; here it only tells streams apart."""

    @classmethod
    def of(cls, sae: Any, dataset: str, context_size: int) -> "Stream":
        metadata = sae.cfg.metadata
        seqpos = tuple(metadata.seqpos_slice or (None,))
        return cls(dataset, context_size, bool(metadata.prepend_bos), seqpos)


def token_batches(
    ctx: EvalContext, sae: Any, stream: Stream, n_batches: int, batch_size: int
) -> "Tensor":
    """[n_batches, B, T] ids, the first that SAELens's store gives for this SAE's settings.

    sae_bench takes the batches for losses first and goes on from there for reconstruction:
    `reset_input_dataset` between them resets an iterator that nothing reads.
    """
    key = ctx.content(
        "base", __file__, stream=stream._asdict(), n_batches=n_batches, batch_size=batch_size
    )

    def make() -> "dict[str, Tensor]":
        import torch

        with reading(ctx, STORE):
            store = _store(ctx, sae, stream)
            return {
                "ids": torch.stack([store.get_batch_tokens(batch_size) for _ in range(n_batches)])
            }

    return ctx.cache.tensors(key, make)["ids"].to(ctx.device)


def _store(ctx: EvalContext, sae: Any, stream: Stream) -> Any:
    from sae_lens.training.activations_store import ActivationsStore

    store = ActivationsStore.from_sae(
        ctx.model("base"),
        sae,
        context_size=stream.context_size,
        dataset=stream.dataset,
        dataset_trust_remote_code=True,
    )
    store.shuffle_input_dataset(seed=SHUFFLE_SEED)
    return store
