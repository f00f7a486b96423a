"""The run's own settings and plugins: each is made once, and every variant rehearsed quickly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import preflight_stream, registry, saelens_import, training_log
from bench.config import VariantConfig
from bench.doctor.report import Check
from bench.doctor.subject import Subject
from bench.errors import UserError
from bench.model_files import missing
from bench.models import on_side
from bench.requirements import settings_of
from bench.shapes import shape_of


def checks(subject: Subject) -> Iterator[Check]:
    """What the stream, the roster, the suites' settings and the loggers would refuse."""
    config, spec = subject.config, subject.spec
    yield from _checked("stream", preflight_stream.problems(config, spec), config.train.dataset)
    yield from _checked("SAEs", _roster(subject), f"{subject.n_saes} SAEs are set up")
    yield from suites(subject)
    yield from _checked("loggers", _loggers(subject), ", ".join(config.train.log_to) or "CSV only")


def suites(subject: Subject) -> Iterator[Check]:
    """Each suite is imported and its settings made, so that a broken one is known now."""
    for name, fields in subject.config.suites.items():
        try:
            if problems := list(_undeclared(name, subject.cache)):
                yield Check(f"suite {name}", "fail", *problems[0])
                continue
            if problems := list(_too_long(subject, name, settings_of(name, fields))):
                yield from (Check(f"suite {name}", "fail", *problem) for problem in problems)
                continue
        except UserError as error:
            yield Check(f"suite {name}", "fail", str(error))
        else:
            side = subject.side_of(name)
            yield Check(
                f"suite {name}", "pass", f"on the {side} model, engine {_engine(subject, name)}"
            )


def _undeclared(suite: str, work: Path) -> Iterator[tuple[str, str]]:
    """What `check` finds missing in a suite's declarations, with the fix."""
    from bench.check.suite_points import SuiteRehearsal, declares

    for problem in declares(SuiteRehearsal(registry.describe("suites", suite), work)):
        yield f"suite {suite!r}: {problem.message}", problem.fix


def _too_long(subject: Subject, suite: str, settings: Any) -> Iterator[tuple[str, str]]:
    """Settings with more tokens than the suite's model reads at once, each with the fix."""
    try:
        spec = on_side(subject.spec, subject.side_of(suite))
    except UserError:  # told with the pair
        return
    if (shape := shape_of(spec)) is None:
        return
    for name in registry.load("suites", suite).contexts:
        value = getattr(settings, name)
        if isinstance(value, int) and value > shape.n_ctx:
            what = f"suites.{suite}.{name}={value}: exceeds the {shape.n_ctx}"
            yield f"{what} of model {spec.name!r}", "lower it"


def rehearsals(subject: Subject) -> Iterator[Check]:
    """A quick check of each variant, with the settings that the run gives it.

    Settings that differ in the sparsity knob alone are one: how strong it is changes no code.
    """
    from bench.check.kit import preflight_problems

    done = []
    for variant in subject.config.variants:
        kind = variant.name, _without_knob(variant)
        if kind in done:
            continue
        done.append(kind)
        problems = preflight_problems(variant.name, variant.config, subject.cache)
        message = "a quick `check` passes" + (f" with {variant.config}" if variant.config else "")
        yield from _checked(f"variant {variant.name}", problems, message)


def _without_knob(variant: VariantConfig) -> dict[str, Any]:
    try:
        knob = registry.load("variants", variant.name, variant.config).knob
    except UserError:  # told with the SAEs
        return variant.config
    return {k: v for k, v in variant.config.items() if knob is None or k != knob.name}


def _checked(name: str, problems: Iterator[str], passed: str) -> Iterator[Check]:
    found = list(problems)
    for problem in found:
        message, _, fix = problem.partition("; fix: ")
        yield Check(name, "fail", message, fix)
    if not found:
        yield Check(name, "pass", passed)


def _roster(subject: Subject) -> Iterator[str]:
    from bench.roster import roster

    if subject.spec.is_local and missing(subject.spec):
        for foreign in subject.config.saelens:  # the rest needs the model's files
            try:
                saelens_import.check(foreign, subject.spec, subject.config.hook_name)
            except UserError as error:
                yield str(error)
        return
    try:
        roster(subject.config, subject.spec, data_revision="")
    except UserError as error:
        yield str(error)
        return
    for foreign in subject.config.saelens:
        try:
            if foreign.path is not None:  # what is on the hub is not fetched for this
                saelens_import.load(foreign)
        except UserError as error:
            yield str(error)


def _loggers(subject: Subject) -> Iterator[str]:
    try:
        training_log.check(subject.config.train.log_to)
    except UserError as error:
        yield str(error)


def _engine(subject: Subject, suite: str) -> str:
    from bench.plan import engine_of

    return engine_of(subject.config, suite)
