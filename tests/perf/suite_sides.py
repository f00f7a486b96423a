"""The two sides of each suite: sae_bench's own `run_eval` per SAE, and our fast engine for all.

sae_bench meets warm artifacts and its fastest supported settings. Ours keeps between runs what
sae_bench keeps, and nothing more: what sae_bench does in every `run_eval`, ours does in every run.
"""

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import pytest
from worlds import World, few_words

from bench.cache import Cache
from bench.counters import SHARED, Work, counting

KEPT = ("letters", "reliable questions", "questions right under all 24 orders")
"""What the artifacts that sae_bench keeps too are called in our cache."""
SUITES = ("core", "sparse_probing", "absorption", "unlearning")


class Side(Protocol):
    """One engine on N SAEs."""

    found: dict[str, Any]
    """Label -> the numbers of the last run, by their names."""
    work: Work
    """What the last run computed, all SAEs together."""

    def run(self) -> None: ...


class Artifacts(Cache):
    """Keeps what sae_bench keeps: texts in activations, the letter probe, question ids."""

    def tensors(self, key: Any, make: Any) -> Any:
        kept = "dataset" in key or key.get("what") in KEPT
        return super().tensors(key, make) if kept else make()


class Reference:
    """`run_eval` for one SAE after the other."""

    def __init__(self, world: World, suite: str, n: int, folder: Path):
        self.world, self.suite = world, suite_of(world, suite)
        self.ctx, self.handles = world.context(folder, "reference"), world.handles(n)
        self._one = getattr(self, f"_{suite}")()
        self.found, self.work = {}, Work()

    def run(self) -> None:
        self.work = Work()
        with _quiet(), few_words(self.world.words_per_letter):
            for handle in self.handles:
                model = self.ctx.model(self.suite.side)
                with counting([model], [handle.sae]) as work:
                    self.found[handle.label] = self._one(handle)
                self.work += work

    def _core(self) -> Callable[[Any], Any]:
        import sae_bench.evals.core.main as core
        from sae_bench.evals.core.eval_output import CoreEvalOutput

        from bench.context import sae_bench_on, sae_bench_result

        settings = asdict(self.suite.cfg)
        batch = settings.pop("batch_size_prompts")
        output = self.ctx.work / "core"

        def one(handle: Any) -> Any:
            with sae_bench_on(self.ctx, "base"):
                core.multiple_evals(
                    [(handle.label, handle.sae)],
                    eval_batch_size_prompts=batch,
                    compute_featurewise_density_statistics=True,
                    compute_featurewise_weight_based_metrics=True,
                    output_folder=str(output),
                    dtype=self.ctx.dtype,
                    device=self.ctx.device,
                    force_rerun=True,
                    **settings,
                )
            return _of_core(sae_bench_result(output, handle.label, CoreEvalOutput))

        return one

    def _sparse_probing(self) -> Callable[[Any], Any]:
        with _quiet():
            self.suite._warm(self.ctx, self.handles[0])
        return lambda handle: _of_probing(self.suite._one(self.ctx, handle).saebench)

    def _absorption(self) -> Callable[[Any], Any]:
        from bench.absorption.engine import layer_of, make_engine

        engine = make_engine(self.ctx, self.suite.cfg)
        with _quiet(), few_words(self.world.words_per_letter):
            engine.prepare(layer_of(self.handles[0]))
        return lambda handle: _of_absorption(engine.scores(handle).raw)

    def _unlearning(self) -> Callable[[Any], Any]:
        import sae_bench.evals.unlearning.main as unlearning
        from sae_bench.evals.unlearning.eval_output import UnlearningEvalOutput

        from bench.context import sae_bench_result
        from bench.unlearning.config import PROMPT_NAME, for_saebench
        from bench.unlearning.questions import asked
        from bench.unlearning.reference import left_behind

        data, output = self._question_ids(), self.ctx.work / "unlearning"
        corpus = self.ctx.work / "sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl"
        corpus.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.world.hub.file("bio-forget-corpus", "train"), corpus)
        config = for_saebench(self.suite.cfg, self.ctx.seed, self.ctx.dtype)

        def one(handle: Any) -> Any:
            own = output / handle.label  # made afresh: sae_bench scores every .pkl that it finds
            shutil.rmtree(own, ignore_errors=True)
            folder = own / "unlearning" / PROMPT_NAME
            shutil.copytree(data, folder / "data")
            with asked(self.ctx):
                unlearning.run_eval(
                    config,
                    [(handle.label, handle.sae)],
                    self.ctx.device,
                    str(output),
                    force_rerun=True,
                    artifacts_path=str(own),
                )
            raw = sae_bench_result(output, handle.label, UnlearningEvalOutput)
            results = folder / f"{handle.label}_custom_sae/results/metrics"
            return left_behind(results, data), raw["eval_result_metrics"]

        return one

    def _question_ids(self) -> Path:
        """The folder that sae_bench's ids are in."""
        from bench.unlearning.engine import make_engine

        engine: Any = make_engine(self.ctx, self.suite.cfg, self.handles)
        if self.world.is_planted:
            _plant_ids(engine.folder, self.world, self.suite.cfg.dataset_names)
        else:
            with _quiet():
                engine.prepare()
        return engine.folder / "data"


class Fast:
    """All SAEs at once."""

    def __init__(self, world: World, suite: str, n: int, folder: Path):
        self.world, self.suite = world, suite_of(world, suite)
        self.ctx, self.handles = world.context(folder, "fast"), world.handles(n)
        self.ctx.cache = Artifacts(folder / "shared", 1.0)
        self._all = getattr(self, f"_{suite}")
        self.found, self.work = {}, Work()

    def run(self) -> None:
        with _quiet(), few_words(self.world.words_per_letter):
            self.found, works = self._all()
        self.work = _total(works)

    def _core(self) -> tuple[dict[str, Any], list[dict[str, int]]]:
        return self._run(_of_core)

    def _sparse_probing(self) -> tuple[dict[str, Any], list[dict[str, int]]]:
        return self._run(_of_probing)

    def _run(self, numbers: Callable[[Any], Any]) -> tuple[dict[str, Any], list[dict[str, int]]]:
        scored = list(self.suite.run(self.ctx, self.handles))
        return {s.label: numbers(s.saebench) for s in scored}, [s.work for s in scored]

    def _absorption(self) -> tuple[dict[str, Any], list[dict[str, int]]]:
        from bench.absorption.engine import layer_of, make_engine

        engine = make_engine(self.ctx, self.suite.cfg)
        engine.prepare(layer_of(self.handles[0]))
        scores = {handle.label: engine.scores(handle) for handle in self.handles}
        found = {label: _of_absorption(s.raw) for label, s in scores.items()}
        return found, [s.work for s in scores.values()]

    def _unlearning(self) -> tuple[dict[str, Any], list[dict[str, int]]]:
        from bench.unlearning.engine import make_engine

        engine = make_engine(self.ctx, self.suite.cfg, self.handles)
        with _trusted(self.world):
            engine.prepare()
        tried = {handle.label: engine.tried(handle) for handle in self.handles}
        found = {label: _of_unlearning(t) for label, t in tried.items()}
        return found, [t.work for t in tried.values()]


def assert_same(suite: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """The gate. Absorption's fractions may differ by rounding, everything else by nothing."""
    assert list(theirs) == list(ours)
    for label in theirs:
        if suite == "absorption":
            for row, mine in zip(theirs[label], ours[label], strict=True):
                assert mine == pytest.approx(row, abs=1e-6), label
        else:
            assert ours[label] == theirs[label], label


def suite_of(world: World, name: str) -> Any:
    from bench import registry

    kind = registry.load("suites", name)
    suite = kind(kind.Config(**world.configs[name]))
    if name == "unlearning":
        # sae_bench has no such grid, and a run may not be without
        object.__setattr__(suite.cfg, "relative_multipliers", ())
    return suite


def _of_core(raw: Any) -> Any:
    return raw["eval_result_metrics"], raw["eval_result_details"]


def _of_probing(raw: Any) -> Any:
    return raw["eval_result_unstructured"]


def _of_absorption(raw: Any) -> Any:
    return raw["eval_result_details"]


def _of_unlearning(tried: Any) -> Any:
    return tried.settings, tried.raw["eval_result_metrics"]


def _total(works: Sequence[dict[str, int]]) -> Work:
    """Own work of all SAEs, and once what they shared."""
    names = [name for name in works[0] if not name.startswith(SHARED)]
    shared = {name: works[0].get(SHARED + name, 0) for name in names}
    return Work(**{name: shared[name] + sum(w[name] for w in works) for name in names})


def _plant_ids(folder: Path, world: World, names: Sequence[str]) -> None:
    """Question ids as sae_bench writes them: every question."""
    for name in names:
        of_hazard = name == "wmdp-bio"
        file = "cais/wmdp" if of_hazard else "cais/mmlu"
        n = len((world.hub.root / file / name / "test.jsonl").read_text().splitlines())
        full = name if of_hazard else f"mmlu-{name.replace('_', '-')}"
        for kind in ("correct", "correct-iff-question", "correct-no-tricks"):
            for split in ("train", "test", "all"):
                path = folder / f"data/question_ids/{split}/{full}_{kind}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(f"{i}\n" for i in range(n)))


@contextlib.contextmanager
def _trusted(world: World):
    """In a planted world every question is answered reliably, by definition."""
    import bench.unlearning.fast as fast

    if not world.is_planted:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fast,
            "reliable",
            lambda asker, asked, **_: {name: list(range(len(q))) for name, q in asked.items()},
        )
        yield


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """sae_bench prints a lot."""
    return contextlib.redirect_stdout(io.StringIO())
