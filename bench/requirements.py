"""What a config needs from elsewhere, as data: models, data sets, files behind a licence.

`doctor`, `data fetch` and `data status` read the same list. A suite declares its part in `data()`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.config import RunConfig, TrainConfig
from bench.errors import UserError
from bench.needs import DataNeed, merged, text_need

if TYPE_CHECKING:
    from bench.datasets import Hub

DOCUMENTS_READ_AHEAD = 256
"""At least so many documents, however long: several calls of the tokenizer."""


class ModelNeed(NamedTuple):
    """A language model with its tokenizer."""

    name: str
    """What the config calls it."""
    hub_id: str


class Needs(NamedTuple):
    """Everything that a run loads and that does not come with this package."""

    models: tuple[ModelNeed, ...]
    data: tuple[DataNeed, ...]
    """Each file once."""
    training: tuple[str, ...]
    """Paths of the data sets that the SAEs are trained on."""
    by_suite: dict[str, tuple[str, ...]]
    """Suite -> paths of the data sets that it reads."""
    notes: tuple[str, ...] = ()
    """What no mirror can hold, each with the way out."""


def needs_of(config: RunConfig) -> Needs:
    """The needs of a run. Raises UserError for a suite that cannot be loaded."""
    from bench import registry
    from bench.models import on_side, resolve
    from bench.sources import hub_id

    spec = resolve(config.model, config.instruct)
    if spec.world != "real":
        return Needs((), (), (), {}, tuple(_notes(config)))
    models, training, by_suite = [spec], _training(config.train), {}
    needs = [*training]
    for name, fields in config.suites.items():
        suite = registry.load("suites", name)(settings_of(name, fields))
        models.append(on_side(spec, suite.side))
        try:
            own = suite.data()
        except ValueError as error:
            raise UserError(f"suites.{name}: {error}") from error
        needs += own
        by_suite[name] = tuple(dict.fromkeys(need.path for need in own))
    ids = {found: s.name for s in models if (found := hub_id(s.source))}
    return Needs(
        models=tuple(ModelNeed(name, found) for found, name in ids.items()),
        data=merged(needs),
        training=tuple(need.path for need in training),
        by_suite=by_suite,
        notes=tuple(_notes(config)),
    )


def revisions(config: RunConfig, hub: "Hub") -> dict[str, str]:
    """Suite -> the state of the data that it reads; in an embedded world, of all data."""
    known = needs_of(config).by_suite
    return {
        suite: hub.revision_of(known[suite]) if suite in known else hub.revision
        for suite in config.suites
    }


def settings_of(suite: str, fields: dict[str, Any]) -> Any:
    """A suite's Config with these fields. Raises UserError where either is broken."""
    from bench import registry
    from bench.strict import build

    try:
        return build(registry.load("suites", suite).Config, fields, f"suites.{suite}")
    except ValueError as error:  # what a Config says of a value that it does not accept
        raise UserError(f"suites.{suite}: {error}") from error


def _training(train: TrainConfig) -> list[DataNeed]:
    """The training text, unless it is a local file; held-out text comes first.

    Text is read ahead in whole passes of the model and whole calls of the tokenizer, and what is
    left of those behind the held-out text is not trained on.
    """
    from bench.memory import TOKENS_PER_PASS
    from bench.texts import is_file

    if is_file(train.dataset):
        return []
    n_tokens = train.tokens + train.heldout_tokens + 4 * TOKENS_PER_PASS
    need = text_need(train.dataset, train.text_column, n_tokens)
    return [replace(need, n_rows=DOCUMENTS_READ_AHEAD)]


def _notes(config: RunConfig) -> Iterator[str]:
    for what in config.saelens:
        if what.release is not None:
            yield (
                f"saelens {what.release}:{what.sae_id} comes from the hub: save it with sae_lens's "
                "save_model and give its `path`"
            )
