"""The models: their files, base against instruct, chat template, hook and width."""

from collections.abc import Iterator
from typing import Any

from bench import model_files
from bench.doctor import hub
from bench.doctor.report import Check
from bench.doctor.subject import Subject
from bench.errors import UserError
from bench.models import ModelSpec, on_side
from bench.pair import differences
from bench.shapes import shape_of


def checks(subject: Subject) -> Iterator[Check]:
    """Base model first, then its sibling where a suite asks it, then both beside one another."""
    base = files(subject.spec, ())
    yield base
    yield hook(subject)
    asked = subject.on("instruct")
    if not asked:
        return
    try:
        other = on_side(subject.spec, "instruct")
    except UserError as error:
        fix = "`instruct: NAME or FOLDER` in the config, or leave these suites out"
        yield Check("instruct model", "fail", str(error).partition(";")[0], fix, asked)
        return
    sibling = files(other, asked) if other != subject.spec else None
    if sibling is not None:
        yield sibling
    if any(check is not None and check.state == "fail" for check in (base, sibling)):
        message = f"{other.name} cannot be compared before both models' files are here"
        yield Check("pair", "skip", message)
        return
    yield from compared(subject, other, asked)


def files(spec: ModelSpec, suites: tuple[str, ...]) -> Check:
    """Whether a model's config, tokenizer and weights are here, or can be fetched."""
    name, lacking = f"model {spec.name}", model_files.missing(spec)
    if not lacking:
        where = spec.source if spec.is_local else f"{spec.source} in the hub's cache"
        where = "embedded" if spec.world == "nano" else where
        return Check(name, "pass", f"{spec.kind}, {where}")
    what = f"model={spec.name!r}: {', '.join(lacking)} missing"
    if spec.is_local:
        fix = "make it with `nano build`" if spec.world == "nano" else "check the path"
        return Check(name, "fail", f"{what} in {spec.source}", fix, suites)
    return hub.remote(name, what, spec.source, "model", suites)


def hook(subject: Subject) -> Check:
    """Whether the hook is one of the model, with rows as wide as the config says."""
    config, spec = subject.config, subject.spec
    shape = shape_of(spec)
    if shape is None:
        return Check("hook", "skip", f"the sizes of model {spec.name!r} are not known yet")
    layer = int(config.hook_name.split(".")[1])
    if layer >= shape.n_layers:
        message = f"hook_name={config.hook_name!r}: {spec.name!r} has layers 0 to "
        return Check("hook", "fail", f"{message}{shape.n_layers - 1}", "name one of them")
    width = shape.width(config.hook_name)
    if width is None or config.d_in not in (None, width):
        return Check("hook", "skip", "see the stream")  # told there, with the fix
    return Check("hook", "pass", f"{config.hook_name} of {spec.name}, d_in {width}")


def compared(subject: Subject, instruct: ModelSpec, asked: tuple[str, ...]) -> Iterator[Check]:
    """Whether what is trained on the base means anything on the instruct model."""
    spec = subject.spec
    try:
        if instruct != spec:
            problems = list(differences(spec, instruct, subject.config.hook_name))
        else:
            problems = _no_template(model_files.tokenizer_of(spec), spec)
    except (UserError, OSError, ValueError, KeyError) as error:
        message = f"{spec.name} and {instruct.name}: cannot be read: {_line(error)}"
        yield Check("pair", "fail", message, "fetch their files again", asked)
        return
    for problem in problems:
        message = f"models {spec.name!r} and {instruct.name!r}: {problem}"
        fix = "`instruct:` the sibling that was made from this very base, with a chat template"
        yield Check("pair", "fail", message, fix, asked)
    if not problems:
        facts = model_files.facts(instruct)
        shape = f"{facts['num_hidden_layers']} layers of {facts['hidden_size']}"
        message = f"{spec.name} and {instruct.name}: {shape}, same tokens, chat template"
        yield Check("pair", "pass", message)


def _no_template(tokenizer: Any, spec: ModelSpec) -> list[str]:
    if tokenizer.chat_template:
        return []
    return [f"the tokenizer of {spec.name!r} has no chat template"]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
