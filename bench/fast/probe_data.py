"""The texts of sparse probing and what the language model makes of them, once for all SAEs."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.context import EvalContext, patched, process_state, reading
from bench.errors import UserError
from bench.fast.probes import Table, full_accuracies, top_k_accuracies
from bench.fast.resume import HookPoint

if TYPE_CHECKING:
    from torch import Tensor

DATASET_UTILS = "sae_bench.sae_bench_utils.dataset_utils"
SPLITS = ("train", "test")


class Settings(NamedTuple):
    """What decides the activations of a data set beside model, hook and data."""

    train_size: int
    """Training texts per probe, both classes together."""
    test_size: int
    context_length: int
    """Tokens per text; the rest is cut off."""
    batch_size: int
    """Texts per language-model call."""
    seed: int
    """Of the choice of texts."""


class Split(NamedTuple):
    """Texts of all classes, class after class."""

    x: "Tensor"
    """[n_texts, T, d_in] at the hook; zero where the mask is False."""
    mask: "Tensor"
    """[n_texts, T] bool: neither padding nor BOS nor EOS."""
    sizes: dict[str, int]
    """Class -> how many texts, in their order."""

    def classes(self) -> "Iterator[tuple[Tensor, Tensor]]":
        """(x, mask) of each class."""
        for start, n in zip(accumulate(self.sizes.values(), initial=0), self.sizes.values()):
            yield self.x[start : start + n], self.mask[start : start + n]


class Activations(NamedTuple):
    """A data set as the language model sees it."""

    train: Split
    test: Split


def activations(ctx: EvalContext, hook: str, name: str, settings: Settings) -> Activations:
    """A data set of sae_bench's by its name, on the model's device."""
    from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset

    classes = chosen_classes_per_dataset[name]
    key = ctx.content("base", __file__, hook=hook, dataset=name, settings=settings._asdict())
    found = ctx.cache.tensors(key, lambda: _run(ctx, hook, name, settings))
    splits = []
    for split in SPLITS:
        sizes = dict(zip(classes, found[f"{split}/sizes"].tolist()))
        x, mask = (found[f"{split}/{part}"].to(ctx.device) for part in ("x", "mask"))
        splits.append(Split(x, mask, sizes))
    return Activations(*splits)


def model_accuracies(
    ctx: EvalContext,
    hook: str,
    name: str,
    settings: Settings,
    k_values: tuple[int, ...],
    acts: Activations,
) -> dict[str, dict[str, float]]:
    """Accuracies of probes on the model's own channels: sae_bench's metric -> class -> value.

    Drawn anew from the seed for every data set, so that they depend on no SAE and no other set.
    """
    import torch

    classes = list(acts.train.sizes)
    names = ["llm_test_accuracy", *(f"llm_top_{k}_test_accuracy" for k in k_values)]

    def make() -> "dict[str, Tensor]":
        generator = torch.Generator().manual_seed(settings.seed)
        train, test = (Table(mean_over_tokens(s.x, s.mask), s.sizes) for s in acts)
        found = [full_accuracies(train, test, generator)]
        found += [top_k_accuracies(train, test, k, generator) for k in k_values]
        rows = [[by_class[c] for c in classes] for by_class in found]
        return {"accuracy": torch.tensor(rows, dtype=torch.float64)}

    key = ctx.content(
        "base",
        __file__,
        probes=list(k_values),
        hook=hook,
        dataset=name,
        settings=settings._asdict(),
    )
    rows = ctx.cache.tensors(key, make)["accuracy"].tolist()
    return {metric: dict(zip(classes, row)) for metric, row in zip(names, rows)}


def mean_over_tokens(x: "Tensor", mask: "Tensor") -> "Tensor":
    """x [n, T, d] zero where mask [n, T] is False -> [n, d]; zeros where no token counts."""
    return x.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1).to(x.dtype)


def _run(ctx: EvalContext, hook: str, name: str, settings: Settings) -> "dict[str, Tensor]":
    """The tensors that are kept."""
    import torch

    point = HookPoint(ctx.model("base"), hook)
    found = {}
    for split, by_class in zip(SPLITS, _token_ids(ctx, name, settings)):
        parts = [_at_hook(point, ids, settings.batch_size) for ids in by_class.values()]
        found[f"{split}/x"] = torch.cat([x for x, _ in parts])
        found[f"{split}/mask"] = torch.cat([mask for _, mask in parts])
        found[f"{split}/sizes"] = torch.tensor([len(x) for x, _ in parts])
    return found


def _at_hook(point: HookPoint, ids: "Tensor", batch_size: int) -> "tuple[Tensor, Tensor]":
    """ids [n, T] -> x [n, T, d_in] and mask [n, T], batch by batch."""
    import torch

    tokenizer: Any = point.model.tokenizer
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    without = torch.tensor([i for i in special if i is not None], device=ids.device)
    mask = ~torch.isin(ids, without)
    with torch.no_grad():
        parts = [
            # on the CPU: a whole data set may not fit beside the model
            (point.up_to(some) * keep[:, :, None]).cpu()
            for some, keep in zip(ids.split(batch_size), mask.split(batch_size))
        ]
    return torch.cat(parts), mask.cpu()


@contextmanager
def enough_texts(name: str, train_size: int, test_size: int) -> Iterator[None]:
    """Raise UserError where sae_bench would end in a KeyError: a class has too few texts.

    It leaves such a class out (`get_balanced_dataset`), and then looks for it (`filter_dataset`).
    """
    from sae_bench.sae_bench_utils import dataset_utils

    plain = dataset_utils.filter_dataset

    def checked(data: dict[str, list[str]], classes: list[str]) -> dict[str, list[str]]:
        if missing := [c for c in classes if c not in data]:
            raise UserError(
                f"probe_train_set_size={train_size}, probe_test_set_size={test_size}: "
                f"{name!r} has fewer texts than that of class {missing[0]!r}; lower them"
            )
        return plain(data, classes)

    with patched(dataset_utils, "filter_dataset", checked):
        yield


def _token_ids(ctx: EvalContext, name: str, settings: Settings) -> "list[dict[str, Tensor]]":
    """For training and test, class -> [n, T] token ids: sae_bench's choice of texts."""
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    classes = dataset_info.chosen_classes_per_dataset[name]
    with reading(ctx, DATASET_UTILS), process_state(settings.seed):
        texts = dataset_utils.get_multi_label_train_test_data(
            name, settings.train_size, settings.test_size, settings.seed
        )
    tokenizer: Any = ctx.model("base").tokenizer
    found = []
    for data in texts:
        with enough_texts(name, settings.train_size, settings.test_size):
            chosen = dataset_utils.filter_dataset(data, classes)
        tokenized = dataset_utils.tokenize_data_dictionary(
            chosen, tokenizer, settings.context_length, ctx.device
        )
        found.append({c: tokenized[c]["input_ids"] for c in classes})
    return found
