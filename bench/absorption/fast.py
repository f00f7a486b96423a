"""The fast engine of absorption: sae_bench's values, each word read once and encoded once.

Shared by all SAEs of a layer are the words' activations and the letter probe. Of the many numbers
that sae_bench writes per word, letter and k, only those that its result depends on are computed.
"""

import json
import statistics
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.absorption import k_sparse
from bench.absorption.config import AbsorptionConfig, for_saebench, too_few
from bench.absorption.engine import Scores, layer_of, seeded
from bench.absorption.latent_acts import LatentActs
from bench.absorption.letters import LETTERS, Letters, letters_of
from bench.absorption.projection import absorbed
from bench.context import EvalContext
from bench.counters import Work, counting
from bench.suite import SaeHandle

if TYPE_CHECKING:
    from torch import Tensor

WORDS_PER_CALL = 4096
"""As many as sae_bench encodes at a time."""


class Shared(NamedTuple):
    """What the SAEs of one layer share."""

    letters: Letters
    f1: "Tensor"
    """[26] of the letter probe."""
    work: Work


class Fast:
    """Everything that the SAEs of a run share, by layer."""

    def __init__(self, ctx: EvalContext, cfg: AbsorptionConfig):
        self.ctx, self.cfg = ctx, cfg
        self._shared: dict[int, Shared] = {}

    def prepare(self, layer: int) -> None:
        """Read the words and train the letter probe, once per layer."""
        if layer not in self._shared:
            with counting([self.ctx.model("base")]) as work:
                letters = letters_of(self.ctx, self.cfg, layer)
            f1 = k_sparse.f1_of_letters(letters.scores, letters.y_test)
            self._shared[layer] = Shared(letters, f1, work)
        n_letters = int((self._shared[layer].f1 > self.cfg.min_GT_probe_f1).sum())
        if n_letters < self.cfg.min_feats_for_eval:
            raise too_few(self.cfg, self.ctx, n_letters)

    def scores(self, handle: SaeHandle) -> Scores:
        """sae_bench's result, from the same draws as if this SAE were evaluated alone."""
        import torch

        shared = self._shared[layer_of(handle)]
        with seeded(self.ctx), torch.no_grad(), counting(saes=[handle.sae]) as work:
            split = self._split(handle.sae, shared.letters)
            raw = self._raw(handle, self._details(handle.sae, shared, split))
        return Scores(raw, work.recorded(shared.work))

    def words(self, layer: int) -> "Tensor":
        """[n_test, d_in]"""
        return self._shared[layer].letters.x_test

    def _split(self, sae: Any, letters: Letters) -> list[list[int]]:
        """The latents of each letter."""
        per_call, max_k = self.cfg.k_sparse_probe_batch_size, self.cfg.max_k_value
        train = LatentActs(sae, letters.x_train, per_call)
        picked_by = k_sparse.l1_probe(train, letters.y_train, self.cfg)
        probes = k_sparse.k_probes(train, letters.y_train, picked_by, max_k)
        f1 = k_sparse.f1_of_probes(
            LatentActs(sae, letters.x_test, WORDS_PER_CALL), letters.y_test, probes
        )
        return k_sparse.split_latents(probes, f1, self.cfg.f1_jump_threshold)

    def _details(self, sae: Any, shared: Shared, split: list[list[int]]) -> list[dict[str, Any]]:
        """sae_bench's row for each letter that counts and has words."""
        letters, rows = shared.letters, []
        for i, letter in enumerate(LETTERS):
            x = letters.x_again[letters.y_again == i].to(sae.device)
            if not len(x):
                continue
            found = absorbed(sae, x, letters.weight[i], split[i], WORDS_PER_CALL)
            n_full = int(found.is_full.sum())
            if shared.f1[i] > self.cfg.min_GT_probe_f1:
                rows.append(
                    {
                        "first_letter": letter,
                        "mean_absorption_fraction": found.fraction.sum().item() / len(x),
                        "full_absorption_rate": n_full / len(x),
                        "num_full_absorption": n_full,
                        "num_probe_true_positives": len(x),
                        "num_split_features": len(split[i]),
                    }
                )
        return rows

    def _raw(self, handle: SaeHandle, details: list[dict[str, Any]]) -> dict[str, Any]:
        """The JSON that sae_bench would write."""
        import sae_bench.evals.absorption.eval_output as output
        from sae_bench import sae_bench_utils as utils
        from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

        sae_id, sae, _ = load_and_format_sae(handle.label, handle.sae, self.ctx.device)  # type: ignore
        fraction, full, n_split = (
            [row[name] for row in details]
            for name in ("mean_absorption_fraction", "full_absorption_rate", "num_split_features")
        )
        means = output.AbsorptionMeanMetrics(
            mean_absorption_fraction_score=statistics.mean(fraction),
            mean_full_absorption_score=statistics.mean(full),
            mean_num_split_features=statistics.mean(n_split),
            std_dev_absorption_fraction_score=statistics.stdev(fraction),
            std_dev_full_absorption_score=statistics.stdev(full),
            std_dev_num_split_features=statistics.stdev(n_split),
        )
        made = output.AbsorptionEvalOutput(
            eval_type_id=output.EVAL_TYPE_ID_ABSORPTION,
            eval_config=for_saebench(self.cfg, self.ctx),
            eval_id=utils.get_eval_uuid(),
            datetime_epoch_millis=int(datetime.now().timestamp() * 1000),
            eval_result_metrics=output.AbsorptionMetricCategories(mean=means),
            eval_result_details=[output.AbsorptionResultDetail(**row) for row in details],
            sae_bench_commit_hash=utils.get_sae_bench_version(),
            sae_lens_id=sae_id,
            sae_lens_release_id=handle.label,
            sae_lens_version=utils.get_sae_lens_version(),
            sae_cfg_dict=sae.cfg.to_dict(),
        )
        return json.loads(made.to_json())
