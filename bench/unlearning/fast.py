"""The fast engine of unlearning: sae_bench's answers, each computed once and from where it changes.

Shared by all SAEs are the choice of questions, the activations that prompts and texts have below
the SAE, and the tokens on which latents are counted. A question that is asked is answered right
when nothing is changed, so an intervention whose latents never fire on it leaves it right.
"""

import json
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.checkpoint import Measured, measure
from bench.context import EvalContext, activations_on
from bench.counters import Work, counting
from bench.suite import SaeHandle
from bench.unlearning.asking import Asker, by_question, reliable
from bench.unlearning.clamping import Clamping
from bench.unlearning.config import UnlearningConfig, for_saebench, questions_per_call
from bench.unlearning.engine import Tried
from bench.unlearning.exam import Exam
from bench.unlearning.grid import Correct, Ids, Setting, saebench_score
from bench.unlearning.latents import Rates, hook_of
from bench.unlearning.questions import Question, asked, chat_texts, questions
from bench.unlearning.reliable import reliable_ids

if TYPE_CHECKING:
    from torch import Tensor


class Fast:
    """Everything that the SAEs of a run share, and what each of them changes."""

    ids: Ids

    def __init__(self, ctx: EvalContext, cfg: UnlearningConfig, saes: list[SaeHandle]):
        self.ctx, self.cfg, self.saes = ctx, cfg, saes
        self.exam: Exam | None = None
        self.shared = Work()

    def prepare(self) -> None:
        """Choose the questions and count the latents of all SAEs, once."""
        import torch

        if self.exam is not None:
            return
        with asked(self.ctx) as model, torch.no_grad(), counting([model]) as self.shared:
            self.asker = Asker(model, questions_per_call(self.cfg))
            self.ids = reliable_ids(
                self.ctx, self.cfg, lambda: reliable(self.asker, self.questions)
            )
            self.exam = Exam(self.ctx, self.cfg, self.asker, self.questions, self.ids, self.saes)

    def tried(self, handle: SaeHandle) -> Tried:
        """Every setting with this SAE; settings that come to the same answer share it."""
        import torch

        assert self.exam is not None
        rates = self.exam.rates[handle.label]
        if isinstance(rates, Exception):
            raise rates
        sae = handle.sae
        with asked(self.ctx) as model, torch.no_grad(), counting([model], [sae]) as work:
            clamping = self.exam.clamping(sae, rates)
            settings = self._saebench(self.exam, clamping, rates)
            grids = self.exam.grids(clamping, rates)
            raw = self._raw(handle, saebench_score(settings))
        return Tried(settings, grids, raw, (work + rates.work).recorded(self.shared))

    def mean_difference(self, handle: SaeHandle) -> list[Setting]:
        """Tried when the engine was prepared."""
        assert self.exam is not None
        return self.exam.mean_difference(handle.sae)

    def chat(self, handle: SaeHandle) -> Measured:
        """The SAE on the instruct model reading questions, which it reads once."""
        hook = hook_of(handle.sae)
        if hook not in self._chat:
            texts = chat_texts(self.ctx, self.cfg.dataset_names)
            self._chat[hook] = activations_on(self.ctx, "instruct", hook, texts)
        return measure(handle.sae, self._chat[hook].to(handle.sae.dtype))

    def without_words(self, words: frozenset[str]) -> Correct:
        """Only questions that hold one of the words are asked again."""
        import torch

        chosen = [(name, self.questions[name][i]) for name in self.ids for i in self.ids[name]]
        shorter = [(name, question.without(words)) for name, question in chosen]
        changed = [i for i in range(len(chosen)) if shorter[i] != chosen[i]]
        right = [True] * len(chosen)
        if changed:
            with asked(self.ctx), torch.no_grad():
                prompts = [shorter[i][1].prompt(shorter[i][0]) for i in changed]
                answers = self.asker.read(self.asker.tokens(prompts))
            for i, answer in zip(changed, answers, strict=True):
                right[i] = answer == chosen[i][1].answer
        return by_question(self.ids, right)

    @cached_property
    def questions(self) -> dict[str, list[Question]]:
        """Every question of every set."""
        return {name: questions(self.ctx, name) for name in self.cfg.dataset_names}

    @cached_property
    def _chat(self) -> dict[str, "Tensor"]:
        return {}

    def _saebench(self, exam: Exam, clamping: Clamping, rates: Rates) -> list[Setting]:
        """sae_bench's grid, by multiplier, number of latents and threshold."""
        grid = exam.grid(rates, self.cfg.multipliers)
        wanted = {key: clamping.interventions(grid[key], key.multiplier) for key in grid}
        changed = {w for each in wanted.values() for w in each if w.latents}
        answers = clamping.answers(sorted(changed))
        settings = []
        for key, each in wanted.items():
            right = [answers.get(w, a) == a for w, a in zip(each, exam.right, strict=True)]
            settings.append(Setting(*key, by_question(self.ids, right)))
        return settings

    def _raw(self, handle: SaeHandle, score: float) -> dict[str, Any]:
        """The JSON that sae_bench would write."""
        import sae_bench.evals.unlearning.eval_output as output
        from sae_bench import sae_bench_utils as utils
        from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

        sae_id, sae, _ = load_and_format_sae(handle.label, handle.sae, self.ctx.device)  # type: ignore
        made = output.UnlearningEvalOutput(
            eval_config=for_saebench(self.cfg, self.ctx.seed, self.ctx.dtype),
            eval_id=utils.get_eval_uuid(),
            datetime_epoch_millis=int(datetime.now().timestamp() * 1000),
            eval_result_metrics=output.UnlearningMetricCategories(
                unlearning=output.UnlearningMetrics(unlearning_score=score)
            ),
            eval_result_details=[],
            sae_bench_commit_hash=utils.get_sae_bench_version(),
            sae_lens_id=sae_id,
            sae_lens_release_id=handle.label,
            sae_lens_version=utils.get_sae_lens_version(),
            sae_cfg_dict=sae.cfg.to_dict(),
        )
        return json.loads(made.to_json())
