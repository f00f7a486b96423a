"""Every data set of a run: embedded, in the mirror, a user's file, on this machine, on the hub."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

from bench import registry, sources
from bench.doctor import hub
from bench.doctor.report import Check
from bench.doctor.subject import Subject
from bench.mirror.status import status
from bench.model_files import is_offline
from bench.needs import ASK_FOR, DataNeed
from bench.requirements import Needs, needs_of

FILE_SUFFIXES = (".jsonl", ".parquet")
"""Of a data set that is a local file; a setting that ends so names one."""
EMBEDDED = (
    "Skylion007/openwebtext",
    "wikitext",
    "bio-forget-corpus",
    "LabHC/bias_in_bios",
    "canrager/amazon_reviews_mcauley_1and5",
    "fancyzhx/ag_news",
    "codeparrot/github-code",
    "Helsinki-NLP/europarl",
    "cais/wmdp",
    "cais/mmlu",
)
"""The data sets of the nano world."""
ASKING = 8
"""Questions to the hub at a time."""


def checks(subject: Subject) -> Iterator[Check]:
    """One check per data set. Only the hub's answers take time, and they come together."""
    for suite in subject.config.suites:
        yield from local_files(subject, suite)
    if subject.spec.world == "nano":
        yield from _embedded(subject)
        return
    needs = _needs(subject)
    by_path: dict[str, list[DataNeed]] = {}
    for need in needs.data:
        by_path.setdefault(need.path, []).append(need)
    with ThreadPoolExecutor(ASKING) as pool:
        yield from pool.map(
            lambda path: data_set(subject, path, by_path[path], _wanted_by(path, needs)), by_path
        )
    if sources.active().mirror is not None or is_offline():
        for note in needs.notes:
            message, _, fix = note.partition(": ")
            yield Check("imported SAE", "fail", message, fix)


def _embedded(subject: Subject) -> Iterator[Check]:
    """The nano world has the data sets that the shipped suites read, and fewer texts of them."""
    from bench.nano.data import DataSizes
    from bench.texts import is_file

    text, n_failed = subject.config.train.dataset, 0
    wanted = [] if is_file(text) else [("train.dataset", text, ())]
    for suite in subject.config.suites:
        settings = subject.settings(suite)
        if settings is not None:
            needs = registry.load("suites", suite)(settings).data()
            paths = dict.fromkeys(need.path for need in needs)
            wanted += [(f"suites.{suite}", path, (suite,)) for path in paths]
        sizes = DataSizes()
        for field in ("probe_train", "probe_test"):
            size, most = getattr(settings, f"{field}_set_size", 0), getattr(sizes, field)
            if size > most:
                n_failed += 1
                message = f"suites.{suite}.{field}_set_size={size}: the nano world has {most} texts"
                yield Check("data", "fail", message, f"`{field}_set_size: {most}`", (suite,))
    for where, path, suites in wanted:
        if path not in EMBEDDED:
            n_failed += 1
            message = f"{where}: {path!r} is not in the nano world"
            yield Check("data", "fail", message, f"one of {', '.join(EMBEDDED)}", suites)
    if not n_failed:
        n = len(subject.config.suites)
        yield Check("data", "pass", f"embedded: text to train on, data of {n} suites")


def data_set(subject: Subject, path: str, needs: list[DataNeed], suites: tuple[str, ...]) -> Check:
    """Where one data set comes from. `suites`: who reads it; none = training does."""
    name, mirror = f"data {path}", sources.active().mirror
    if mirror is not None:
        return _mirrored(name, path, needs, Path(mirror), suites)
    local = subject.cache / sources.FILES / path
    if local.is_dir():
        return Check(name, "pass", str(local))
    if path in ASK_FOR:
        found = hub.remote(name, f"{path} is behind a licence", needs[0].hub_id, "dataset", suites)
        return found if found.state == "pass" else found._replace(fix=ASK_FOR[path])
    if all(_is_cached(need) for need in needs):
        return Check(name, "pass", "in the cache of the `datasets` package")
    return hub.remote(name, f"{path} is not on this machine", needs[0].hub_id, "dataset", suites)


def local_files(subject: Subject, suite: str) -> Iterator[Check]:
    """Files of the user that a suite's settings name."""
    settings = subject.settings(suite)
    for field in fields(settings) if is_dataclass(settings) else ():
        value = getattr(settings, field.name)
        if not isinstance(value, str) or Path(value).suffix not in FILE_SUFFIXES:
            continue
        where, path = f"suites.{suite}.{field.name}", Path(value)
        if path.is_file():
            size = f"{path.stat().st_size / 1e6:,.1f} MB"
            yield Check(f"data {path.name}", "pass", f"{where}: {path}, {size}")
        else:
            message = f"{where}={value!r}: there is no such file, seen from {Path.cwd()}"
            yield Check(f"data {path.name}", "fail", message, "correct the path", (suite,))


def _mirrored(
    name: str, path: str, needs: list[DataNeed], root: Path, suites: tuple[str, ...]
) -> Check:
    items = status(Needs((), tuple(needs), (), {}), root)
    lacking = [item for item in items if item.state != "ok"]
    if not lacking:
        return Check(name, "pass", f"in the mirror: {'; '.join(item.detail for item in items)}")
    what = "; ".join(f"{item.what} is {item.state}" for item in lacking)
    fix = ASK_FOR.get(path, f"on a machine with network: `data fetch CONFIG --mirror {root}`")
    return Check(name, "fail", f"mirror {root}: {what}", fix, suites)


def _is_cached(need: DataNeed) -> bool:
    """Whether an earlier run has left it. What is read as a stream is never kept."""
    from datasets.config import HF_DATASETS_CACHE

    if need.is_bounded:
        return False
    for hub_id in (need.path, need.hub_id):
        folder = Path(HF_DATASETS_CACHE) / hub_id.replace("/", "___")
        if (folder / (need.config or "default")).is_dir():
            return True
    return False


def _needs(subject: Subject) -> Needs:
    """Of the training and of every suite that could run at all; the others are told elsewhere."""
    config = subject.config
    possible = dict(config.suites)
    for suite in config.suites:
        is_broken = subject.settings(suite) is None
        is_alone = subject.side_of(suite) == "instruct" and subject.instruct is None
        if is_broken or is_alone:
            del possible[suite]
    return needs_of(replace(config, suites=possible))


def _wanted_by(path: str, needs: Needs) -> tuple[str, ...]:
    if path in needs.training:
        return ()
    return tuple(suite for suite, paths in needs.by_suite.items() if path in paths)
