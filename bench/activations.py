"""Activations of the training text: one pass of the language model feeds every SAE.

Text is packed into contexts of a fixed size as SAELens packs it: BOS first, documents behind one
another with a BOS between. Special tokens run through the model but are never trained on.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from bench import ops
from bench.config import RunConfig, TrainConfig
from bench.datasets import Hub
from bench.errors import UserError
from bench.models import ModelSpec, load_model
from bench.validate import parse_hook
from bench.variant import Batch

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

T = TypeVar("T")
POOL_BYTES = 1024**3
"""Most memory for activations that wait to be mixed; where all fit, the mixing is complete."""
SAMPLE_TOKENS = 16_384
"""Tokens from which the input scale, the mean and the variants' start are taken."""
CONTEXTS_PER_PASS = 32
TEXTS_PER_CALL = 32


def open_stream(
    config: RunConfig,
    spec: ModelSpec,
    hub: Hub,
    cache_dir: Path,
    report: Callable[[int, int], None] | None = None,
    *,
    needs_sequences: bool = False,
) -> "ActivationStream":
    """The stream of a run. `report` gets tokens read and to read; `cache_dir` is shared by runs.

    Whole contexts beside the shuffled tokens come only if they are asked for.
    """
    if needs_sequences:
        raise UserError("needs_sequences=True: the stream has no whole contexts yet")

    def texts() -> Iterator[str]:
        # on the hub, openwebtext comes with a script; a mirror has none
        rows = hub.load_dataset(
            config.train.dataset, split="train", streaming=True, trust_remote_code=True
        )
        return (row["text"] for row in rows)

    return ActivationStream(
        load_model(spec, config.device, config.dtype),
        config.hook_name,
        texts,
        config.train,
        data_seed=config.data_seed,
        report=report,
    )


class ActivationStream:
    """Shuffled training batches, and a held-out split from other documents.

    The first documents are held out, training starts with the next one. Every pass over the stream
    gives the same batches; activations that fit into memory are computed once. Raises UserError for
    a hook that the model lacks, a context longer than its own, or too little text.
    """

    def __init__(
        self,
        model: "HookedTransformer",
        hook_name: str,
        texts: Callable[[], Iterable[str]],
        config: TrainConfig,
        *,
        data_seed: int,
        report: Callable[[int, int], None] | None = None,
    ):
        """`texts` opens the training text anew; `report` gets tokens read and to read."""
        _check(model, hook_name, config.context_size)
        self.config = config
        self.n_steps = config.tokens // config.batch_size
        self._model, self._hook_name, self._texts = model, hook_name, texts
        self._data_seed, self._report = data_seed, report
        self._n_heldout_texts = 0

    def __iter__(self) -> Iterator[Batch]:
        """`n_steps` batches of scaled activations, each token of the pass exactly once."""
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches of the steps from `start` on, bit for bit those of a whole pass."""
        return islice(self._pass(), start, None)

    def _pass(self) -> Iterator[Batch]:
        generator = ops.generator(self._data_seed, "order of the tokens")
        rows = self._all_mixed(generator) if self._fits else self._pool_mixed(generator)
        for x in rows:
            yield Batch(x / self.scale)

    @property
    def n_tokens(self) -> int:
        """Tokens of one pass: whole batches only."""
        return self.n_steps * self.config.batch_size

    @cached_property
    def heldout(self) -> Tensor:
        """[heldout_tokens, d_in] activations that no SAE is trained on, in the model's units."""
        n = self.config.heldout_tokens
        texts = _Counted(self._texts())
        found = torch.cat(list(_take(self._read(texts), n, self._too_small)))
        self._n_heldout_texts = texts.n_read
        return found

    @property
    def d_in(self) -> int:
        return self.heldout.shape[1]

    @cached_property
    def raw_sample(self) -> Tensor:
        """[n, d_in] the first training activations, in the model's units."""
        if self._fits:
            return self._all[:SAMPLE_TOKENS]
        n = min(SAMPLE_TOKENS, self.n_tokens)
        return torch.cat(list(_take(self._training(), n, self._too_small)))

    @cached_property
    def scale(self) -> float:
        """What activations are divided by: the root of their mean squared norm on the sample."""
        return self.raw_sample.double().pow(2).sum(-1).mean().sqrt().item()

    @property
    def sample(self) -> Tensor:
        """[n, d_in] the first training activations, scaled."""
        return self.raw_sample / self.scale

    @property
    def _fits(self) -> bool:
        return self.n_tokens <= self._pool_tokens

    @property
    def _pool_tokens(self) -> int:
        wanted = POOL_BYTES // (self.d_in * torch.float32.itemsize)
        return max(wanted, 2 * self.config.batch_size)

    @cached_property
    def _all(self) -> Tensor:
        """[n_tokens, d_in] every training activation, in reading order."""
        pool = self.heldout.new_empty(self.n_tokens, self.d_in)
        n = 0
        for rows in _take(self._training(), self.n_tokens, self._too_small):
            pool[n : n + len(rows)] = rows
            n += len(rows)
            if self._report:
                self._report(n, self.n_tokens)
        return pool

    def _all_mixed(self, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(self.n_tokens, generator=generator).to(self._all.device)
        for rows in order.split(self.config.batch_size):
            yield self._all[rows]

    def _pool_mixed(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Half of a shuffled pool at a time, so that a batch mixes far more than its own tokens."""
        size, n_waiting = self.config.batch_size, 0
        pool = self.heldout.new_empty(self._pool_tokens + self._tokens_per_pass, self.d_in)
        n_left = self.n_tokens
        for rows in _take(self._training(), self.n_tokens, self._too_small):
            pool[n_waiting : n_waiting + len(rows)] = rows
            n_waiting += len(rows)
            n_left -= len(rows)
            if n_left and n_waiting < self._pool_tokens:
                continue
            n_out = n_waiting // (2 if n_left else 1) // size * size
            order = torch.randperm(n_waiting, generator=generator).to(pool.device)
            for chosen in order[:n_out].split(size):
                yield pool[chosen]
            n_waiting -= n_out
            pool[:n_waiting] = pool[order[n_out:]]

    @property
    def _tokens_per_pass(self) -> int:
        return CONTEXTS_PER_PASS * self.config.context_size

    def _training(self) -> Iterator[Tensor]:
        """[m, d_in] at a time, the documents behind the held-out ones in reading order."""
        assert len(self.heldout)  # counts its documents
        return self._read(islice(self._texts(), self._n_heldout_texts, None))

    def _read(self, texts: Iterable[str]) -> Iterator[Tensor]:
        """Activations [m, d_in] of the tokens that are not special, one model pass at a time."""
        tokenizer: Any = self._model.tokenizer
        documents = (
            ids
            for some in _groups(texts, TEXTS_PER_CALL)
            for ids in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        )
        contexts = pack(documents, tokenizer.bos_token_id, self.config.context_size)
        for some in _groups(contexts, CONTEXTS_PER_PASS):
            tokens = torch.tensor(some, device=self._model.cfg.device)  # [b, T]
            yield activations(self._model, self._hook_name, tokens)[is_text(tokenizer, tokens)]

    def _too_small(self, n_found: int, n_wanted: int) -> UserError:
        c = self.config
        return UserError(
            f"train.tokens={c.tokens} and train.heldout_tokens={c.heldout_tokens}: "
            f"{c.dataset} ends after {n_found} of {n_wanted} tokens; lower train.tokens"
        )


@torch.no_grad()
def activations(model: "HookedTransformer", hook_name: str, tokens: Tensor) -> Tensor:
    """What `hook_name` sees, stopping behind its layer. tokens [b, T] -> [b, T, d_in] float32."""
    seen: list[Tensor] = []
    layer, _ = parse_hook(hook_name)
    model.run_with_hooks(
        tokens,
        return_type=None,
        stop_at_layer=layer + 1,
        fwd_hooks=[(hook_name, lambda value, hook: seen.append(value.detach().float()))],
    )
    (found,) = seen
    if found.ndim != 3:
        raise UserError(f"hook_name={hook_name!r}: gives {found.ndim} axes, must be [b, T, d_in]")
    return found


def is_text(tokenizer: Any, tokens: Tensor) -> Tensor:
    """True where a token is none of BOS, EOS and padding. [b, T] -> [b, T] bool."""
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    known = torch.tensor([t for t in special if t is not None], device=tokens.device)
    return ~torch.isin(tokens, known)


def pack(documents: Iterable[list[int]], bos: int, size: int) -> Iterator[list[int]]:
    """Token ids of documents -> contexts of `size` ids; a last one that is not full is left out."""
    context = [bos]
    for document in documents:
        if context[-1] != bos:
            context.append(bos)
        context += document
        while len(context) >= size:
            yield context[:size]
            context = [bos, *context[size:]]


class _Counted(Iterable[T]):
    """Counts what was taken from an iterable."""

    def __init__(self, items: Iterable[T]):
        self._items, self.n_read = items, 0

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self.n_read += 1
            yield item


def _take(
    rows: Iterable[Tensor], n: int, too_small: Callable[[int, int], UserError]
) -> Iterator[Tensor]:
    """The first n rows, in the pieces that they come in; raises `too_small` if there are fewer."""
    n_found = 0
    for some in rows:
        yield some[: n - n_found]
        n_found += min(len(some), n - n_found)
        if n_found == n:
            return
    raise too_small(n_found, n)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some


def _check(model: "HookedTransformer", hook_name: str, context_size: int) -> None:
    name = model.cfg.model_name
    parse_hook(hook_name)
    if hook_name not in model.hook_dict:
        raise UserError(f"hook_name={hook_name!r}: model {name!r} has no such hook")
    if context_size > model.cfg.n_ctx:
        raise UserError(
            f"train.context_size={context_size}: exceeds the {model.cfg.n_ctx} of model {name!r}"
        )
    if getattr(model.tokenizer, "bos_token_id", None) is None:
        raise UserError(f"model={name!r}: its tokenizer has no BOS, with which contexts start")
