"""The fast engine of unlearning: sae_bench's answers, each computed once and from where it changes.

Shared by all SAEs are the choice of questions, the activations that prompts and texts have below
the SAE, and the tokens on which latents are counted. A question that is asked is answered right
when nothing is changed, so an intervention whose latents never fire on it leaves it right.
"""

import json
from datetime import datetime
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from bench.checkpoint import Measured, measure
from bench.context import EvalContext, activations_on
from bench.counters import Work, counting
from bench.suite import SaeHandle
from bench.unlearning.asking import Asker, by_question, reliable
from bench.unlearning.clamping import Clamping
from bench.unlearning.config import UnlearningConfig, for_saebench, questions_per_call
from bench.unlearning.engine import Tried
from bench.unlearning.grid import Correct, Setting, saebench_score
from bench.unlearning.latents import Rates, firing_rates, hook_of, layer_of
from bench.unlearning.questions import Question, asked, chat_texts, check_enough, questions

if TYPE_CHECKING:
    from torch import Tensor


class Fast:
    """Everything that the SAEs of a run share, and what each of them changes."""

    def __init__(self, ctx: EvalContext, cfg: UnlearningConfig, saes: list[SaeHandle]):
        self.ctx, self.cfg, self.saes = ctx, cfg, saes
        self.rates: dict[str, Rates | Exception] = {}
        self.shared = Work()

    def prepare(self) -> None:
        """Choose the questions and count the latents of all SAEs, once."""
        import torch

        if self.rates:
            return
        with asked(self.ctx) as model, torch.no_grad(), counting([model]) as self.shared:
            self.asker = Asker(model, questions_per_call(self.cfg))
            self.ids = self._reliable()
            check_enough(self.ids)
            chosen = [(name, self._questions[name][i]) for name in self.ids for i in self.ids[name]]
            self.right = [question.answer for _, question in chosen]
            tokens = self.asker.tokens([question.prompt(name) for name, question in chosen])
            self.x = {
                layer: self.asker.residuals(tokens, layer + 1)
                for layer in {layer_of(h.sae) for h in self.saes}
            }
            found = firing_rates(self.ctx, self.cfg, model, [h.sae for h in self.saes])
        self.rates = dict(zip([h.label for h in self.saes], found, strict=True))

    def tried(self, handle: SaeHandle) -> Tried:
        """Every setting with this SAE; settings that come to the same answer share it."""
        import torch

        rates = self.rates[handle.label]
        if isinstance(rates, Exception):
            raise rates
        sae = handle.sae
        with asked(self.ctx) as model, torch.no_grad(), counting([model], [sae]) as work:
            settings = self._settings(sae, rates)
            raw = self._raw(handle, saebench_score(settings))
        return Tried(settings, raw, (work + rates.work).recorded(self.shared))

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

        chosen = [(name, self._questions[name][i]) for name in self.ids for i in self.ids[name]]
        shorter = [(name, question.without(words)) for name, question in chosen]
        changed = [i for i in range(len(chosen)) if shorter[i] != chosen[i]]
        right = [True] * len(chosen)
        if changed:
            prompts = [shorter[i][1].prompt(shorter[i][0]) for i in changed]
            with asked(self.ctx), torch.no_grad():
                answers = self.asker.read(self.asker.tokens(prompts))
            for i, answer in zip(changed, answers, strict=True):
                right[i] = answer == self.right[i]
        return by_question(self.ids, right)

    @cached_property
    def _questions(self) -> dict[str, list[Question]]:
        return {name: questions(self.ctx, name) for name in self.cfg.dataset_names}

    @cached_property
    def _chat(self) -> dict[str, "Tensor"]:
        return {}

    def _reliable(self) -> dict[str, list[int]]:
        import torch

        def make() -> dict[str, Any]:
            found = reliable(self.asker, self._questions)
            return {name: torch.tensor(ids, dtype=torch.long) for name, ids in found.items()}

        key = self.ctx.content(
            "instruct", __file__, what="reliable questions", datasets=list(self.cfg.dataset_names)
        )
        ids = self.ctx.cache.tensors(key, make)
        return {name: ids[name].tolist() for name in self.cfg.dataset_names}

    def _settings(self, sae: Any, rates: Rates) -> list[Setting]:
        """Each setting of the grid, by multiplier, number of latents and threshold."""
        grid = self._grid(rates)
        chosen = sorted(set().union(*grid.values()))
        clamping = Clamping(self.asker, sae, self.x[layer_of(sae)], chosen)
        wanted = {key: clamping.interventions(grid[key], key[0]) for key in sorted(grid)}
        changed = {w for each in wanted.values() for w in each if w.latents}
        answers = clamping.answers(sorted(changed))
        settings = []
        for key, each in wanted.items():
            right = [answers.get(w, answer) == answer for w, answer in zip(each, self.right)]
            settings.append(Setting(*key, by_question(self.ids, right)))
        return settings

    def _grid(self, rates: Rates) -> dict[tuple[int, int, float], list[int]]:
        """(multiplier, number of latents, threshold) -> the latents.

        As in sae_bench's file names, a setting is known by how many latents there were to clamp.
        """
        grid = {}
        for threshold in self.cfg.retain_thresholds:
            top = rates.top(threshold)
            for n, multiplier in product(self.cfg.n_features_list, self.cfg.multipliers):
                grid[multiplier, len(top[:n]), threshold] = top[:n]
        return grid

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
