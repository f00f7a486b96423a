"""Whether the installed packages are those that we were tested with, and load."""

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from bench import compat
from bench.doctor.report import Check
from bench.doctor.subject import Subject

OURS = "sae-verdict"
NEIGHBOUR = "sae-bench"
"""Its own bounds count too: it is installed without upper bounds of ours in some places."""
SHOWN = ("torch", "transformers", "transformer-lens", "sae-lens", "sae-bench", "datasets", "numpy")
NAMES = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
"""Modules that are not named after what is installed."""
PYTHON = ((3, 11), (3, 13))


def checks(_: Subject) -> Iterator[Check]:
    """Python, the versions of requirements, and the two clashes among them."""
    yield python()
    yield from versions()
    yield torchvision()
    yield beartype()


def python() -> Check:
    """sae-bench needs numpy below 2, which ends with Python 3.12."""
    is_known = PYTHON[0] <= sys.version_info[:2] < PYTHON[1]
    found = f"Python {sys.version.split()[0]}"
    fix = "" if is_known else "use Python 3.11 or 3.12"
    return Check("python", "pass" if is_known else "fail", found, fix)


def versions() -> Iterator[Check]:
    """One check for all requirements that are met, and one for each that is not."""
    unmet = list(_unmet())
    for requirement, found in unmet:
        fix = f"pip install '{requirement}'"
        yield Check("packages", "fail", f"{requirement} is needed, {found} is installed", fix)
    if not unmet:
        known = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in SHOWN)
        yield Check("packages", "pass", known)


def requirement_of(module: str) -> str | None:
    """The requirement of ours that brings a module; None for a module of something else."""
    from packaging.requirements import Requirement

    package = module.partition(".")[0]
    name = NAMES.get(package, package.replace("_", "-"))
    return next((line for line in _required() if Requirement(line).name == name), None)


def torchvision() -> Check:
    """sae-bench asks for torchvision and never uses it; a broken one must not be imported."""
    if compat.torchvision_loads():
        return Check("torchvision", "pass", "loads beside torch")
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return Check("torchvision", "pass", "is not installed, and not needed")
    if sys.modules.get("torchvision", ...) is None:
        message = f"{version} cannot load beside this torch; it is treated as absent"
        return Check("torchvision", "pass", message)
    message = f"{version} cannot load beside this torch, and was imported before us"
    return Check("torchvision", "fail", message, "pip uninstall torchvision")


def beartype() -> Check:
    """sae_bench 0.6.0's probes fail where sizes are checked at run time by a recent beartype."""
    import jaxtyping

    version = importlib.metadata.version("beartype")
    if jaxtyping.config.jaxtyping_disable:
        return Check("beartype", "pass", f"{version}, sae_bench's checks of sizes are switched off")
    message = f"{version}: jaxtyping was imported with JAXTYPING_DISABLE unset"
    fix = "export JAXTYPING_DISABLE=1"  # suites switch it off themselves
    return Check("beartype", "warn", message, fix)


def _unmet() -> Iterator[tuple[str, str]]:
    """(requirement, installed version or `nothing`)."""
    from packaging.requirements import Requirement

    for line in [*_required(), *(importlib.metadata.requires(NEIGHBOUR) or [])]:
        wanted = Requirement(line)
        if wanted.name == "torchvision" or (
            wanted.marker and not wanted.marker.evaluate({"extra": ""})
        ):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{wanted.name}{wanted.specifier}", "nothing"
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            yield f"{wanted.name}{wanted.specifier}", found


def _required() -> list[str]:
    """Our own requirements: as installed, or in a checkout as written."""
    try:
        return importlib.metadata.requires(OURS) or []
    except importlib.metadata.PackageNotFoundError:
        path = Path(__file__).parents[2] / "pyproject.toml"
        return tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"]
