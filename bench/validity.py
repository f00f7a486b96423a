"""Degenerate SAEs, which must never be ranked: what shows that one never trained or never fires.

Such an SAE can score well: an all-zero one has the best absorption. Imports no torch.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bench.result import Cell

UNSTATED_TOKENS = -100_000
"""What sae_bench's CustomSAEConfig holds where nobody gave the number of training tokens."""

PROBE = re.compile(r"sae_.*test_accuracy")
DECISIVE_VARIANCE = "explained_variance"


@dataclass(frozen=True)
class Facts:
    """What is known of one SAE; empty = not known."""

    l0: tuple[float, ...] = ()
    """Mean active latents per token, each time it was measured."""
    explained_variance: Mapping[str, float] = field(default_factory=dict)
    """Value by metric name, by whatever formulas there are."""
    probe_accuracy: tuple[float, ...] = ()
    frac_alive: float | None = None
    train_tokens: int | None = None
    train_steps: int | None = None
    layers: Mapping[str, int] = field(default_factory=dict)
    """Layer number by the field that states it."""
    not_finite: tuple[str, ...] = ()
    """Names of metrics that are NaN or infinite."""


def facts(
    metrics: Mapping[str, float | None],
    *,
    l0: float | None = None,
    train_tokens: int | None = None,
    train_steps: int | None = None,
    layers: Mapping[str, int] | None = None,
) -> Facts:
    """Sort metrics, named as our suites name them, into facts."""
    known = {name: value for name, value in metrics.items() if value is not None}
    finite = {name: value for name, value in known.items() if math.isfinite(value)}
    return Facts(
        l0=tuple(v for v in (l0, finite.get("l0")) if v is not None),
        explained_variance={n: v for n, v in finite.items() if DECISIVE_VARIANCE in n},
        probe_accuracy=tuple(v for n, v in finite.items() if PROBE.fullmatch(n)),
        frac_alive=finite.get("frac_alive"),
        train_tokens=train_tokens,
        train_steps=train_steps,
        layers=layers or {},
        not_finite=tuple(name for name in known if name not in finite),
    )


def reasons(known: Facts) -> list[str]:
    """Why the SAE is degenerate, one line each; empty if nothing says so."""
    found = [*_dead(known), *_untrained(known), *_contradictions(known)]
    found += [f"{name} is NaN or infinite" for name in known.not_finite]
    if found and known.train_tokens == UNSTATED_TOKENS:
        # alone it proves nothing: well-trained SAEs wrapped for sae_bench carry it too
        found.append(f"training tokens are {UNSTATED_TOKENS}, sae_bench's value for not stated")
    return found


def judge(cells: Iterable[Cell]) -> list[Cell]:
    """The cells of one run, where evidence in one suite makes an SAE invalid in all of them.

    Controls stay as they are: they are degenerate on purpose and never ranked.
    """
    cells = list(cells)
    by_label: dict[str, list[Cell]] = {}
    for cell in cells:
        by_label.setdefault(cell.sae.label, []).append(cell)
    evidence = {label: _evidence(group) for label, group in by_label.items()}
    return [_marked(cell, evidence[cell.sae.label]) for cell in cells]


def _evidence(cells: list[Cell]) -> tuple[str, ...]:
    """Every reason that any cell of one SAE gives, each once."""
    if cells[0].sae.role == "control":
        return ()
    found = [reason for cell in cells for reason in _of_cell(cell)]
    hooks = {cell.sae.hook_name: cell.suite for cell in cells}
    if len(hooks) > 1:
        found.append("hook is " + " but ".join(f"{h} in {s}" for h, s in sorted(hooks.items())))
    return tuple(dict.fromkeys(found))


def _of_cell(cell: Cell) -> list[str]:
    stated = list(cell.evidence)
    if cell.state == "invalid" and not stated:
        stated.append(cell.reason or f"{cell.suite} found it invalid")
    metrics = {metric.name: metric.value for metric in cell.metrics}
    measured = facts(metrics, l0=cell.sae.l0, train_tokens=cell.sae.train_tokens)
    return stated + reasons(measured)


def _marked(cell: Cell, evidence: tuple[str, ...]) -> Cell:
    if not evidence:
        return cell
    if cell.state in ("failed", "skipped"):  # still to be seen
        evidence = (*evidence, f"{cell.suite} {cell.state}: {cell.reason}")
    return replace(cell, state="invalid", reason="; ".join(evidence), evidence=evidence)


def _dead(known: Facts) -> list[str]:
    found = []
    if 0 in known.l0:
        found.append("L0 is 0: no latent ever fires")
    if known.frac_alive == 0:
        found.append("every latent is dead")
    if known.probe_accuracy and all(value == 0.5 for value in known.probe_accuracy):
        found.append("every probe is at exactly 0.5: chance")
    return found


def _untrained(known: Facts) -> list[str]:
    found = []
    variance = known.explained_variance
    # sae_bench's formulas can be negative for a good SAE, so ours decides where there is one
    values = [variance[DECISIVE_VARIANCE]] if DECISIVE_VARIANCE in variance else variance.values()
    if values and max(values) < 0:
        found.append(f"explained variance is {max(values):.2g}: worse than predicting the mean")
    tokens, steps = known.train_tokens, known.train_steps
    if tokens is not None and tokens <= 0 and tokens != UNSTATED_TOKENS:
        found.append(f"training tokens are {tokens}")
    if steps is not None and steps <= 0:
        found.append(f"training steps are {steps}")
    return found


def _contradictions(known: Facts) -> list[str]:
    fields_by_layer: dict[int, list[str]] = {}
    for name, layer in known.layers.items():
        fields_by_layer.setdefault(layer, []).append(name)
    if len(fields_by_layer) < 2:
        return []
    return [
        "layer is "
        + " but ".join(f"{n} in {', '.join(names)}" for n, names in fields_by_layer.items())
    ]
