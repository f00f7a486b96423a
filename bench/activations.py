"""The activation stream: one pass of the language model feeds every SAE, in two views.

A step has shuffled tokens for all variants and, where a variant asks for them, whole contexts in
reading order. Over a pass both views hold each token exactly once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bench import ops
from bench.activation_cache import ActivationCache
from bench.config import RunConfig, TrainConfig
from bench.datasets import Hub
from bench.errors import UserError
from bench.keys import folder_key, versions
from bench.memory import SAMPLE_TOKENS, contexts_per_pass
from bench.mixing import Round, deal, rounds
from bench.models import ModelSpec, load_model
from bench.packing import UNKNOWN, groups
from bench.prefetch import prefetched
from bench.reader import Reader, activations, drop_behind
from bench.texts import Text, text_source
from bench.validate import check_step_holds_contexts
from bench.variant import Batch
from bench.window import Held, Read, Window, norms

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

__all__ = ["ActivationStream", "activations", "open_stream"]

T = TypeVar("T")
BATCHES_AHEAD = 4
"""Batches made in the background on a GPU."""
CACHE_FOLDER = "activations"
SURE_BYTES_PER_TOKEN = 16
"""Text with more bytes per wanted token is taken to be long enough without counting."""


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

    Whole contexts beside the shuffled tokens come only if they are asked for; the shuffled tokens
    are the same with and without. Raises UserError for what cannot be trained on.
    """
    source = text_source(config.train, hub)
    model = load_model(spec, config.device, config.dtype)
    stream = ActivationStream(
        model,
        config.hook_name,
        source.open,
        config.train,
        data_seed=config.data_seed,
        report=report,
        needs_sequences=needs_sequences,
        n_text_bytes=source.n_bytes,
        cache=_cache(config, spec, cache_dir),
        n_ahead=BATCHES_AHEAD if config.device.startswith("cuda") else 0,
    )
    drop_behind(model, config.hook_name)
    if config.d_in not in (None, stream.d_in):
        raise UserError(
            f"d_in={config.d_in}: {config.hook_name} of model {spec.name!r} is {stream.d_in} wide"
        )
    return stream


class SequenceView(NamedTuple):
    """The fields of a Batch that hold whole contexts."""

    contexts: Tensor
    token_ids: Tensor
    positions: Tensor
    mask: Tensor
    context_id: Tensor
    paraphrase_id: Tensor


class ActivationStream:
    """Training batches in two views, and a held-out split from other documents.

    The first documents are held out, training starts with the next one. Every pass over the stream
    gives the same batches; activations that fit into the buffer are computed once.
    """

    def __init__(
        self,
        model: "HookedTransformer",
        hook_name: str,
        texts: Callable[[], Iterable[Text]],
        config: TrainConfig,
        *,
        data_seed: int,
        report: Callable[[int, int], None] | None = None,
        needs_sequences: bool = False,
        n_text_bytes: int | None = None,
        cache: ActivationCache | None = None,
        n_ahead: int = 0,
    ):
        """`texts` opens the training text anew; `report` gets tokens read and to read.

        `n_ahead` batches are made in a background thread. Raises UserError for a hook that the
        model lacks, a context longer than its own, or steps too small for whole contexts; too
        little text is refused when the first activations are asked for.
        """
        self._reader = Reader(model, hook_name, cache)
        _check(self._reader, config, needs_sequences)
        self.config = config
        self.n_steps = config.tokens // config.batch_size
        self._texts, self._n_text_bytes = texts, n_text_bytes
        self._data_seed, self._report = data_seed, report
        self._needs_sequences, self._n_ahead = needs_sequences, n_ahead
        self._contexts_per_pass = contexts_per_pass(config.context_size)

    def __iter__(self) -> Iterator[Batch]:
        """`n_steps` batches of scaled activations, each token of the pass exactly once."""
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches of the steps from `start` on, bit for bit those of a whole pass.

        The text before them is split into tokens, which is cheap, but the model does not read it.
        """
        made = self._pass(start)
        if not self._n_ahead:
            return made
        assert self.scale  # computed here, where a user sees the reason of a failure
        return prefetched(made, self._n_ahead, self._reader.device)

    @property
    def n_tokens(self) -> int:
        """Tokens of one pass: whole batches only."""
        return self.n_steps * self.config.batch_size

    @property
    def d_in(self) -> int:
        return self._first_documents.rows.shape[1]

    @cached_property
    def heldout(self) -> Tensor:
        """[n, d_in] activations that no SAE is trained on, in the model's units.

        n is `heldout_tokens` less the sinks among them.
        """
        return self._without_sinks(self._first_documents.rows)

    @cached_property
    def raw_sample(self) -> Tensor:
        """[n, d_in] the first training activations without sinks, in the model's units."""
        return self._without_sinks(self._first_rows)

    @cached_property
    def scale(self) -> float:
        """What activations are divided by: the root of their mean squared norm on the sample."""
        return self.raw_sample.double().pow(2).sum(-1).mean().sqrt().item()

    @property
    def sample(self) -> Tensor:
        """[n, d_in] the first training activations, scaled."""
        return self.raw_sample / self.scale

    @cached_property
    def max_norm(self) -> float | None:
        """Tokens with a larger norm are left out, in the model's units; None keeps all."""
        if self.config.sink_norm is None:
            return None
        return self.config.sink_norm * norms(self._first_rows).median().item()

    @property
    def sink_fraction(self) -> float:
        """Share of the sample that is left out because of its norm."""
        return 1 - len(self.raw_sample) / len(self._first_rows)

    def _pass(self, start: int) -> Iterator[Batch]:
        window: Window | None = None
        for some in self._rounds():
            if some.first_step + some.n_steps <= start:
                continue
            window = window or self._window(some.oldest)
            self._read_up_to(window, some.newest)
            yield from islice(self._batches(window, some), max(0, start - some.first_step), None)

    def _rounds(self) -> Iterator[Round]:
        c = self.config
        generator = ops.generator(self._data_seed, "order of the tokens")
        return rounds(self.n_steps, c.batch_size, c.buffer_tokens, generator)

    def _batches(self, window: Window, some: Round) -> Iterator[Batch]:
        steps = some.tokens.split(self.config.batch_size)
        batches = (window.take(t[self._are_kept(window, t)]) / self.scale for t in steps)
        if not self._needs_sequences:
            yield from map(Batch, batches)
            return
        for x, contexts in zip(batches, self._dealt(window, some), strict=True):
            yield Batch(x, *self._sequences(window, contexts))

    def _dealt(self, window: Window, some: Round) -> list[list[Held]]:
        """For each step of a round the contexts that begin among as many tokens as it trains on.

        They are shuffled, but those of one content stay together, so that a step sees both.
        """
        start = some.first_step * self.config.batch_size
        held = window.contexts(start, start + len(some.tokens))
        per_step = self.config.batch_size // (self.config.context_size - 1)
        units = _units(held, longest=max(1, per_step - 1))
        generator = ops.generator(self._data_seed, f"order of the contexts from {start}")
        order = torch.randperm(len(units), generator=generator).tolist()
        hands = deal([len(units[i]) for i in order], some.n_steps)
        return [[c for i in hand for c in units[order[i]]] for hand in hands]

    def _sequences(self, window: Window, held: Sequence[Held]) -> SequenceView:
        size, device = self.config.context_size, self._reader.device
        token_ids = torch.stack([c.tokens for c in held])  # [b, T]
        mask = torch.stack([c.is_text for c in held])
        tokens = torch.cat([torch.arange(c.first, c.first + int(c.is_text.sum())) for c in held])
        # the pass may end within a context
        used = (tokens < self.n_tokens) & self._are_kept(window, tokens)
        mask[mask.clone()] = used
        mask = mask.to(device)
        contexts = torch.zeros(*mask.shape, self.d_in, device=device)  # [b, T, d_in]
        contexts[mask] = window.take(tokens[used]) / self.scale
        return SequenceView(
            contexts=contexts,
            token_ids=token_ids.to(device),
            positions=torch.arange(size, device=device).expand(len(held), -1),
            mask=mask,
            context_id=torch.tensor([c.number for c in held], device=device),
            paraphrase_id=torch.tensor([int(c.paraphrase_id) for c in held], device=device),
        )

    def _window(self, oldest: int) -> Window:
        """Where reading starts for a round that needs tokens from `oldest` on."""
        return self._whole if self.is_in_memory else self._opened(oldest, self.config.buffer_tokens)

    def _opened(self, oldest: int, n_tokens: int) -> Window:
        slack = self._contexts_per_pass * self.config.context_size  # a group is read as one
        size = max(n_tokens, 4 * self.config.batch_size) + slack
        return Window(self._training(oldest), size, keep_contexts=self._needs_sequences)

    def _are_kept(self, window: Window, tokens: Tensor) -> Tensor:
        """[n] bool, False for sinks among `tokens` [n]."""
        if self.max_norm is None:
            return torch.ones(len(tokens), dtype=torch.bool)
        return window.are_below(tokens, self.max_norm)

    @property
    def is_in_memory(self) -> bool:
        """Whether all activations of a pass are held at once, in the memory of the device."""
        return self.n_tokens <= self.config.buffer_tokens

    @cached_property
    def _whole(self) -> Window:
        """All tokens of the pass, read once."""
        window = self._opened(0, self.n_tokens)
        self._read_up_to(window, self.n_tokens, self._report)
        return window

    def _read_up_to(
        self, window: Window, n: int, report: Callable[[int, int], None] | None = None
    ) -> None:
        while window.n_read < n:
            if not window.read_one():
                raise self._too_small(window.n_read, self.n_tokens)
            if report:
                report(min(window.n_read, n), n)

    @cached_property
    def _first_documents(self) -> "_HeldOut":
        texts = _Counted(self._texts())
        reads, n = self._reads(texts, 0), self.config.heldout_tokens
        rows = torch.cat(list(_first(reads, n, self._too_small)))
        return _HeldOut(rows, texts.n_read)

    @cached_property
    def _first_rows(self) -> Tensor:
        """[n, d_in] the first training activations, in float32."""
        n = min(SAMPLE_TOKENS, self.n_tokens)
        if self.is_in_memory:
            return self._whole.take(torch.arange(n))
        self._check_length()
        return torch.cat(list(_first(self._training(0), n, self._too_small)))

    def _without_sinks(self, rows: Tensor) -> Tensor:
        return rows if self.max_norm is None else rows[norms(rows) <= self.max_norm]

    def _training(self, oldest: int) -> Iterator[Read]:
        """The documents behind the held-out ones, from the group that holds token `oldest`."""
        return self._reads(self._training_texts(), oldest)

    def _training_texts(self) -> Iterator[Text]:
        return islice(self._texts(), self._first_documents.n_texts, None)

    def _reads(self, texts: Iterable[Text], oldest: int) -> Iterator[Read]:
        """Groups that are always cut in the same way, so that the model's rounding is the same."""
        first = first_context = 0
        size = self.config.context_size
        for group in groups(texts, self._reader.tokenizer, size, self._contexts_per_pass):
            end = first + int(group.is_text.sum())
            if end > oldest:
                yield Read(first, first_context, group, self._reader.read(group))
            first, first_context = end, first_context + len(group.tokens)

    def _check_length(self) -> None:
        """Count the tokens of a text that may be too short, before any training."""
        if self._n_text_bytes is None or self._n_text_bytes >= SURE_BYTES_PER_TOKEN * self.n_tokens:
            return
        n, size = 0, self.config.context_size
        for group in groups(
            self._training_texts(), self._reader.tokenizer, size, self._contexts_per_pass
        ):
            n += int(group.is_text.sum())
            if n >= self.n_tokens:
                return
        raise self._too_small(n, self.n_tokens)

    def _too_small(self, n_found: int, n_wanted: int) -> UserError:
        c = self.config
        return UserError(
            f"train.tokens={c.tokens} and train.heldout_tokens={c.heldout_tokens}: "
            f"{c.dataset} ends after {n_found} of {n_wanted} tokens; lower train.tokens"
        )


class _HeldOut(NamedTuple):
    rows: Tensor
    """[heldout_tokens, d_in] in float32."""
    n_texts: int
    """Documents that were read for it."""


class _Counted(Iterable[T]):
    """Counts what was taken from an iterable."""

    def __init__(self, items: Iterable[T]):
        self._items, self.n_read = items, 0

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self.n_read += 1
            yield item


def _first(
    reads: Iterable[Read], n: int, too_small: Callable[[int, int], UserError]
) -> Iterator[Tensor]:
    """The first n rows, a group at a time; raises `too_small` if there are fewer."""
    n_found = 0
    for read in reads:
        yield read.rows[: n - n_found].float()
        n_found += min(len(read.rows), n - n_found)
        if n_found == n:
            return
    raise too_small(n_found, n)


def _units(held: Sequence[Held], longest: int) -> list[list[Held]]:
    """Contexts in lists of up to `longest` that follow one another with the same paraphrase id.

    No step is left with one context alone if `longest` is less than the contexts per step.
    """
    units: list[list[Held]] = []
    for context in held:
        content = int(context.paraphrase_id)
        is_same = units and content == int(units[-1][-1].paraphrase_id) != UNKNOWN
        if is_same and len(units[-1]) < longest:
            units[-1].append(context)
        else:
            units.append([context])
    return units


def _cache(config: RunConfig, spec: ModelSpec, cache_dir: Path) -> ActivationCache | None:
    if not config.activation_cache_gb:
        return None
    identity: dict[str, Any] = {
        "model": folder_key(Path(spec.source)) if spec.is_local else spec.source,
        "hook_name": config.hook_name,
        "dtype": config.dtype,
        "device": config.device.split(":")[0],
        "versions": versions(),
    }
    budget = int(config.activation_cache_gb * 1e9)
    return ActivationCache(cache_dir / CACHE_FOLDER, budget, identity)


def _check(reader: Reader, config: TrainConfig, needs_sequences: bool) -> None:
    size = config.context_size
    if size > reader.n_ctx:
        raise UserError(
            f"train.context_size={size}: exceeds the {reader.n_ctx} of model {reader.model_name!r}"
        )
    if needs_sequences:
        check_step_holds_contexts(config, "needs_sequences=True")
