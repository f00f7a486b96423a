"""The reference engine of unlearning: sae_bench's own run, made safe and read in full.

sae_bench knows nothing of our own grids; they are tried as in the fast engine.
"""

import pickle
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench.checkpoint import Measured
from bench.context import EvalContext, measured_on, patched, sae_bench_result
from bench.counters import counting
from bench.suite import SaeHandle
from bench.unlearning.asking import Asker
from bench.unlearning.config import (
    PROMPT_NAME,
    UnlearningConfig,
    for_saebench,
    questions_per_call,
)
from bench.unlearning.corpora import reading_corpora
from bench.unlearning.engine import Tried
from bench.unlearning.exam import Exam, Grids
from bench.unlearning.grid import HAZARD, Correct, Ids, Setting
from bench.unlearning.questions import Question, asked, chat_texts, questions
from bench.unlearning.reliable import reliable_ids


class Reference:
    """sae_bench evaluates one SAE at a time; only the choice of questions is shared."""

    ids: Ids

    def __init__(self, ctx: EvalContext, cfg: UnlearningConfig, saes: list[SaeHandle]):
        self.ctx, self.cfg, self.saes = ctx, cfg, saes
        self.folder = ctx.artifacts / "unlearning" / ctx.model_spec("instruct").name
        self.exam: Exam | None = None

    def prepare(self) -> None:
        """Find the questions that the model gets right under all 24 orders, once per model."""
        import torch

        if self.exam is not None:
            return
        self.ids = reliable_ids(self.ctx, self.cfg, self._reliable)
        for name, ids in self.ids.items():
            write_question_ids(self._data, name, ids)
        with asked(self.ctx) as model, torch.no_grad():
            asker = Asker(model, questions_per_call(self.cfg))
            everything = {name: questions(self.ctx, name) for name in self.cfg.dataset_names}
            self.exam = Exam(self.ctx, self.cfg, asker, everything, self.ids, self.saes)

    def _reliable(self) -> Ids:
        import sae_bench.evals.unlearning.utils.metrics as sae_bench_metrics

        shutil.rmtree(self._data, ignore_errors=True)  # of other questions, or half written
        with asked(self.ctx) as model:
            for name in self.cfg.dataset_names:
                batch = questions_per_call(self.cfg)
                sae_bench_metrics.save_target_question_ids(model, batch, str(self.folder), name)
        return {name: question_ids(self._data, name) for name in self.cfg.dataset_names}

    def tried(self, handle: SaeHandle) -> Tried:
        """What sae_bench wrote for this SAE, and the answers that it left behind."""
        import sae_bench.evals.unlearning.main as unlearning
        from sae_bench.evals.unlearning.eval_output import UnlearningEvalOutput

        output = self.ctx.work / "unlearning"
        # a folder of its own, made afresh: sae_bench scores every .pkl that it finds
        own = output / handle.label
        shutil.rmtree(own, ignore_errors=True)
        folder = own / "unlearning" / PROMPT_NAME
        shutil.copytree(self._data, folder / "data")
        with (
            asked(self.ctx) as model,
            reading_corpora(self.ctx, self.cfg),
            counting([model], [handle.sae]) as work,
        ):
            unlearning.run_eval(
                for_saebench(self.cfg, self.ctx.seed, self.ctx.dtype),
                [(handle.label, handle.sae)],
                self.ctx.device,
                str(output),
                force_rerun=True,
                artifacts_path=str(own),
            )
        raw = sae_bench_result(output, handle.label, UnlearningEvalOutput)
        settings = left_behind(folder / f"{handle.label}_custom_sae/results/metrics", self._data)
        shutil.rmtree(own)
        return Tried(settings, self._grids(handle), raw, work.recorded())

    def mean_difference(self, handle: SaeHandle) -> list[Setting]:
        """Tried when the engine was prepared."""
        assert self.exam is not None
        return self.exam.mean_difference(handle.sae)

    def chat(self, handle: SaeHandle) -> Measured:
        """The SAE on the instruct model reading questions."""
        texts = chat_texts(self.ctx, self.cfg.dataset_names)
        return measured_on(self.ctx, "instruct", handle.sae, texts)

    def without_words(self, words: frozenset[str]) -> Correct:
        """Answers by sae_bench's own code when `words` are missing from questions and choices."""
        import sae_bench.evals.unlearning.utils.metrics as sae_bench_metrics

        prompt = sae_bench_metrics.convert_wmdp_data_to_prompt

        def shortened(question: str, choices: list[str], *args: Any, **kwargs: Any) -> str:
            kept = Question(question, choices, 0).without(words)
            return prompt(kept.text, kept.choices, *args, **kwargs)

        correct: Correct = {}
        with (
            asked(self.ctx) as model,
            patched(sae_bench_metrics, "convert_wmdp_data_to_prompt", shortened),
        ):
            for name in self.cfg.dataset_names:
                answers = sae_bench_metrics.calculate_MCQ_metrics(
                    model,
                    questions_per_call(self.cfg),
                    str(self.folder),
                    name,
                    target_metric="correct",
                    verbose=False,
                )["is_correct"]
                ids = question_ids(self._data, name)
                correct[name] = dict(zip(ids, map(float, answers), strict=True))
        return correct

    def _grids(self, handle: SaeHandle) -> Grids:
        import torch

        assert self.exam is not None
        rates = self.exam.rates[handle.label]
        if isinstance(rates, Exception):
            raise rates
        with asked(self.ctx), torch.no_grad():
            return self.exam.grids(self.exam.clamping(handle.sae, rates), rates)

    @property
    def _data(self) -> Path:
        return self.folder / "data"


def question_ids(data: Path, dataset: str) -> list[int]:
    """Ids of the questions that sae_bench asks, in its order."""
    return [int(i) for i in _ids_file(data, dataset, "all", "correct").read_text().split()]


def write_question_ids(data: Path, dataset: str, ids: Sequence[int]) -> None:
    """Tell sae_bench which questions to ask; it asks "all" that are "correct", nothing else."""
    for split, kind in product(
        ("train", "test", "all"), ("correct", "correct-iff-question", "correct-no-tricks")
    ):
        file = _ids_file(data, dataset, split, kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{i}\n" for i in ids))


def _ids_file(data: Path, dataset: str, split: str, kind: str) -> Path:
    name = dataset if dataset == HAZARD else f"mmlu-{dataset.replace('_', '-')}"
    return data / f"question_ids/{split}/{name}_{kind}.csv"


def left_behind(results: Path, data: Path) -> list[Setting]:
    """Every setting whose answers sae_bench wrote into `results`, by question id."""
    from sae_bench.evals.unlearning.main import get_params

    settings = []
    for file in results.glob("*.pkl"):
        multiplier, n_features, _, threshold = get_params(file.name)  # type: ignore[misc]
        answers = pickle.loads(file.read_bytes())
        answers.pop("ablate_params")
        correct = {
            name: dict(zip(question_ids(data, name), map(float, a["is_correct"]), strict=True))
            for name, a in answers.items()
        }
        settings.append(Setting(int(multiplier), int(n_features), float(threshold), correct))
    return sorted(settings, key=lambda s: (s.multiplier, s.n_features, s.retain_threshold))
