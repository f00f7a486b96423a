"""Which SAEs a run has: one per variant or control and seed, with its label, settings and key."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from bench import controls, registry, saelens_import
from bench.config import (
    OPTIMISER,
    WITHOUT_EFFECT,
    ControlConfig,
    RunConfig,
    SaelensConfig,
    VariantConfig,
)
from bench.errors import UserError
from bench.keys import content_key, folder_key, source_key, versions
from bench.models import ModelSpec
from bench.result import Role
from bench.strict import build
from bench.texts import text_key
from bench.validate import check_step_holds_contexts
from bench.variant import Knob, Variant

TRAINER = Path(__file__).with_name("train.py")
"""What trains imports all that decides weights beside the variants: stream, loop, search."""


@dataclass(frozen=True)
class Entry:
    """One SAE to be made."""

    label: str
    """Unique in the run, for example `topk_k8_s0`."""
    seed: int
    source: str
    """Hash of the source of its variant or control."""
    key: str
    """Hash of everything that decides its weights."""

    role: ClassVar[Role]


@dataclass(frozen=True)
class TrainedEntry(Entry):
    """An SAE to be trained."""

    role: ClassVar[Role] = "trained"

    what: VariantConfig
    variant: type[Variant]
    cfg: Any
    """The variant's Config."""
    pilot: str | None
    """Key of the pilots that find the knob for the target L0; None where the knob is known."""

    @property
    def knob_name(self) -> str | None:
        return self.variant.knob.name if self.variant.knob else None

    @property
    def knob_value(self) -> float | None:
        return float(getattr(self.cfg, self.knob_name)) if self.knob_name else None

    def with_knob(self, value: float) -> "TrainedEntry":
        """The same with another value of its knob, rounded where the knob is a whole number.

        Raises ValueError for a value that the variant refuses.
        """
        name = str(self.knob_name)
        is_whole = isinstance(getattr(self.cfg, name), int)
        return replace(self, cfg=replace(self.cfg, **{name: round(value) if is_whole else value}))


@dataclass(frozen=True)
class ControlEntry(Entry):
    """A control to be made."""

    role: ClassVar[Role] = "control"

    what: ControlConfig


@dataclass(frozen=True)
class ImportedEntry(Entry):
    """An SAE of others."""

    role: ClassVar[Role] = "imported"

    what: SaelensConfig


def roster(
    config: RunConfig, spec: ModelSpec, data_revision: str
) -> list[TrainedEntry | ControlEntry | ImportedEntry]:
    """Every SAE of the run in the order of its config, the seeds of one behind one another.

    Raises UserError for settings that exclude one another.
    """
    shared = _shared(config, spec, data_revision)
    entries: list[TrainedEntry | ControlEntry | ImportedEntry] = []
    for i, variant in enumerate(config.variants):
        entries += _trained(variant, config, shared, f"variants[{i}]")
    for control in config.controls:
        entries += _controls(control, config.seeds, shared)
    entries += [_imported(what, config, spec, shared) for what in config.saelens]
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"SAE {label!r}: is asked for {labels.count(label)} times")
    return entries


def _shared(config: RunConfig, spec: ModelSpec, data_revision: str) -> dict[str, Any]:
    """What decides the weights of every SAE of the run."""
    model, train = Path(spec.source), asdict(config.train)
    return {
        "train": {name: value for name, value in train.items() if name not in WITHOUT_EFFECT},
        "trainer": source_key(TRAINER),
        "model": folder_key(model) if spec.is_local else spec.source,
        "hook_name": config.hook_name,
        "data_seed": config.data_seed,
        "data_revision": text_key(config.train.dataset) or data_revision,
        "versions": versions(),
        "device": config.device,
        "dtype": config.dtype,
    }


def _trained(
    what: VariantConfig, config: RunConfig, shared: dict[str, Any], where: str
) -> list[TrainedEntry]:
    variant = registry.load("variants", what.name, what.config)
    if variant.needs_sequences:
        check_step_holds_contexts(config.train, f"{where}.name={what.name!r}")
    try:
        cfg = build(variant.Config, what.config, f"{where}.config")
    except ValueError as error:
        raise UserError(f"{where}.config: {error}") from error
    if what.target_l0 is not None:
        cfg = _aimed(what, what.target_l0, variant.knob, cfg, where)
    source = _source(what)
    content = {**shared, "what": asdict(what), "source": source}
    is_searched = what.target_l0 is not None and variant.knob and not variant.knob.native
    # one set of pilots serves every target
    pilot = content_key({**content, "what": [what.name, what.config]}) if is_searched else None
    return [
        TrainedEntry(
            label=_label(what, _chosen(what, variant.knob, cfg), seed),
            seed=seed,
            source=source,
            key=content_key({**content, "seed": seed}),
            what=what,
            variant=variant,
            cfg=cfg,
            pilot=pilot,
        )
        for seed in config.seeds
    ]


def _source(what: VariantConfig) -> str:
    """Hash of the source of a variant and of the one that it sits on."""
    plugin = registry.describe("variants", what.name, what.config)
    key = source_key(plugin.path)
    if not plugin.base:
        return key
    return content_key([key, source_key(registry.describe("variants", plugin.base).path)])


def _aimed(what: VariantConfig, target_l0: float, knob: Knob | None, cfg: Any, where: str) -> Any:
    """The config for a target L0; a knob whose value is not the L0 is left for the pilot."""
    if knob is None:
        raise UserError(f"{where}.target_l0={target_l0:g}: {what.name!r} has no sparsity knob")
    if knob.name in what.config:
        raise UserError(
            f"{where}: config.{knob.name}={what.config[knob.name]} and target_l0={target_l0:g} "
            "both set the sparsity, leave one out"
        )
    return replace(cfg, **{knob.name: max(1, round(target_l0))}) if knob.native else cfg


def _untrained(shared: dict[str, Any]) -> dict[str, Any]:
    """What decides the weights of an SAE that takes no step."""
    train = {name: value for name, value in shared["train"].items() if name not in OPTIMISER}
    return {**shared, "train": train}


def _controls(
    what: ControlConfig, seeds: Iterable[int], shared: dict[str, Any]
) -> list[ControlEntry]:
    controls.check(what)
    source = source_key(Path(controls.__file__))
    chosen = {} if what.target_l0 is None else {"target": what.target_l0}
    content = {**_untrained(shared), "what": asdict(what), "source": source}
    return [
        ControlEntry(
            label=_label(what, chosen, seed),
            seed=seed,
            source=source,
            key=content_key({**content, "seed": seed}),
            what=what,
        )
        for seed in seeds
    ]


def _imported(
    what: SaelensConfig, config: RunConfig, spec: ModelSpec, shared: dict[str, Any]
) -> ImportedEntry:
    saelens_import.check(what, spec, config.hook_name)
    source = source_key(Path(saelens_import.__file__))
    content = {**_untrained(shared), "what": saelens_import.identity(what), "source": source}
    return ImportedEntry(
        label=saelens_import.label_of(what),
        seed=0,
        source=source,
        key=content_key(content),
        what=what,
    )


def _chosen(what: VariantConfig, knob: Knob | None, cfg: Any) -> dict[str, Any]:
    """The settings that a label names: the sparsity, and what the config gave."""
    if what.target_l0 is not None:
        return {"target": what.target_l0} | what.config
    sparsity = {} if knob is None else {knob.name: getattr(cfg, knob.name)}
    return sparsity | what.config


def _label(what: VariantConfig | ControlConfig, chosen: dict[str, Any], seed: int) -> str:
    settings = [f"{name}{'-' * name[-1].isdigit()}{_text(v)}" for name, v in chosen.items()]
    return "_".join([what.name, *settings, f"s{seed}"])


def _text(value: Any) -> str:
    """A setting as part of a file name: 8.0 -> 8."""
    text = f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)
    return re.sub(r"[^\w.-]+", "-", text)
