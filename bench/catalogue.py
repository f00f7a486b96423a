"""What exists, for `list`: names, summaries and settings, without importing anything heavy."""

from textwrap import fill
from typing import Any, Literal

from bench import models, registry

LINE_WIDTH = 100
Listed = Literal["variants", "suites", "models"]
Row = dict[str, Any]


def rows(kind: Listed) -> list[Row]:
    """One JSON-like row per variant, suite or model; that of a broken plugin says its problem."""
    if kind == "models":
        return [_model(models.resolve(name)) for name in models.names()]
    broken = [_broken(name, problem) for name, problem in registry.problems(kind).items()]
    return [*map(_plugin, registry.summaries(kind)), *broken]


def lines(found: list[Row]) -> list[str]:
    """The rows as text: name, summary, and settings with their defaults below."""
    width = max((len(row["name"]) for row in found), default=0)
    text, indent = [], " " * (width + 2)
    for row in found:
        text.append(f"{row['name']:{width}}  {row['summary']}")
        if row.get("config"):
            settings = ", ".join(f"{s['name']}={s['default']}" for s in row["config"])
            text.append(
                fill(
                    f"config: {settings}",
                    LINE_WIDTH,
                    initial_indent=indent,
                    subsequent_indent=indent,
                )
            )
    return text


def _plugin(plugin: registry.Plugin) -> Row:
    settings = [
        {"name": s.name, "type": s.annotation, "default": s.default, "meaning": s.meaning}
        for s in plugin.fields or ()
    ]
    return {"name": plugin.name, "summary": plugin.summary, "config": settings}


def _broken(name: str, problem: str) -> Row:
    return {"name": name, "summary": f"BROKEN: {problem}", "config": [], "problem": problem}


def _model(spec: models.ModelSpec) -> Row:
    shape = f"{spec.n_layers} layers of {spec.d_model}"
    pair = f"instruct sibling {spec.instruct}" if spec.instruct else f"{spec.kind}, no sibling"
    return {
        "name": spec.name,
        "summary": ", ".join(part for part in (spec.summary, shape, pair) if part),
        "world": spec.world,
        "kind": spec.kind,
        "source": "embedded" if spec.is_local else spec.source,
        "n_layers": spec.n_layers,
        "d_model": spec.d_model,
        "instruct": spec.instruct,
    }
