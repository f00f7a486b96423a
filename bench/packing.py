"""Text as contexts of a fixed size, packed as SAELens packs it.

BOS comes first, and documents follow one another with a BOS between. Special tokens run through the
model but are never trained on.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bench.texts import Text

T = TypeVar("T")
TEXTS_PER_CALL = 32
UNKNOWN = -1
"""Paraphrase id of a context that is not known to have a paraphrase."""


class Document(NamedTuple):
    """A tokenised text."""

    ids: list[int]
    content_id: str = ""
    """As in `Text`."""


class Context(NamedTuple):
    """`size` tokens that the model reads together."""

    ids: list[int]
    contents: list[str]
    """The `content_id` of the document that each token is from; empty at separators."""


class Group(NamedTuple):
    """Contexts of one pass of the model."""

    tokens: Tensor
    """[b, T] ids, on the CPU."""
    is_text: Tensor
    """[b, T] bool, False on special tokens."""
    paraphrase_id: Tensor
    """[b] int, equal for contexts of the same content; -1 where unknown."""


def groups(texts: Iterable[Text], tokenizer: Any, size: int, n: int) -> Iterator[Group]:
    """Text as groups of `n` contexts; the last one may have fewer."""
    for some in chunks(pack(tokenised(texts, tokenizer), tokenizer.bos_token_id, size), n):
        tokens = torch.tensor([context.ids for context in some])
        paraphrase_id = torch.tensor([paraphrase_of(context) for context in some])
        yield Group(tokens, is_text(tokenizer, tokens), paraphrase_id)


def tokenised(texts: Iterable[Text], tokenizer: Any) -> Iterator[Document]:
    """Documents without special tokens of their own, in order."""
    for some in chunks(texts, TEXTS_PER_CALL):
        found = tokenizer([t.text for t in some], add_special_tokens=False, verbose=False)
        for ids, text in zip(found["input_ids"], some, strict=True):
            yield Document(ids, text.content_id)


def pack(documents: Iterable[Document], bos: int, size: int) -> Iterator[Context]:
    """Documents as contexts of `size` tokens; a last one that is not full is left out."""
    ids, contents = [bos], [""]
    for document in documents:
        if not document.ids:
            continue
        if ids[-1] != bos:
            ids.append(bos)
            contents.append("")
        ids += document.ids
        contents += [document.content_id] * len(document.ids)
        while len(ids) >= size:
            yield Context(ids[:size], contents[:size])
            ids, contents = [bos, *ids[size:]], ["", *contents[size:]]


def is_text(tokenizer: Any, tokens: Tensor) -> Tensor:
    """True where a token is none of BOS, EOS and padding. [b, T] -> [b, T] bool."""
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    known = torch.tensor([t for t in special if t is not None], device=tokens.device)
    return ~torch.isin(tokens, known)


def paraphrase_of(context: Context) -> int:
    """A number for the content that at least half of a context's tokens tell; -1 if there is none.

    The number follows from the content alone, so that it is the same in every run.
    """
    known = Counter(content for content in context.contents if content)
    content, n = known.most_common(1)[0] if known else ("", 0)
    if 2 * n < len(context.ids):
        return UNKNOWN
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter."""
    waiting = iter(items)
    while some := list(islice(waiting, size)):
        yield some
