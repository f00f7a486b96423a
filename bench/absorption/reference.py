"""The reference engine of absorption: sae_bench's own run, seeded and in our folders."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.absorption.config import AbsorptionConfig, for_saebench, too_few
from bench.absorption.engine import Scores, seeded
from bench.context import EvalContext, patched, sae_bench_result
from bench.counters import counting
from bench.suite import SaeHandle

if TYPE_CHECKING:
    from torch import Tensor


class Reference:
    """sae_bench evaluates one SAE at a time; only the letter probes are shared."""

    def __init__(self, ctx: EvalContext, cfg: AbsorptionConfig):
        self.ctx, self.cfg = ctx, cfg
        self._words: dict[int, Tensor] = {}

    def prepare(self, layer: int) -> None:
        """Train sae_bench's letter probes once per layer, so that no SAE's draws depend on it."""
        from sae_bench.evals.absorption import common

        if layer in self._words:
            return
        where: Any = {
            "base_template": self.cfg.prompt_template,
            "pos_idx": self.cfg.prompt_token_pos,
            "layer": layer,
            "probes_dir": _root(self.ctx) / "probes",
        }
        with seeded(self.ctx) as model:
            common.load_or_train_probe(model, device=self.ctx.device, **where)
            test = common.load_probe_data_split_or_train(model, split="test", device="cpu", **where)
        self._words[layer] = test[0]

    def words(self, layer: int) -> "Tensor":
        """[n_test, d_in]"""
        return self._words[layer]

    def scores(self, handle: SaeHandle) -> Scores:
        """What sae_bench wrote for this SAE."""
        import sae_bench.evals.absorption.main as absorption
        from sae_bench.evals.absorption.eval_output import AbsorptionEvalOutput

        output = self.ctx.work / "absorption"
        output.mkdir(parents=True, exist_ok=True)
        with (
            seeded(self.ctx) as model,
            _redirected(_root(self.ctx), absorption),
            counting([model], [handle.sae]) as work,
        ):
            results = absorption.run_eval(
                for_saebench(self.cfg, self.ctx),
                [(handle.label, handle.sae)],
                self.ctx.device,
                str(output),
                force_rerun=True,
            )
        if not results:
            raise too_few(self.cfg, self.ctx, self._n_letters(handle.label))
        raw = sae_bench_result(output, handle.label, AbsorptionEvalOutput)
        return Scores(raw, work.recorded())

    def _n_letters(self, label: str) -> int:
        folder = self.ctx.work / "artifacts" / "absorption"
        file = folder / f"{label}_custom_sae_k_sparse_probing.json"
        scores = [row["f1_probe"] for row in json.loads(file.read_text())]
        return sum(f1 > self.cfg.min_GT_probe_f1 for f1 in scores)


def _root(ctx: EvalContext) -> Path:
    return ctx.artifacts / "absorption"


@contextmanager
def _redirected(root: Path, absorption: Any) -> Iterator[None]:
    """Caches go below `root`: by default sae_bench writes them into site-packages."""
    sparse = partial(
        absorption.run_k_sparse_probing_experiment,
        experiment_dir=root / "k_sparse",
        probes_dir=root / "probes",
        verbose=False,
    )
    absorbed = partial(
        absorption.run_feature_absortion_experiment,
        experiment_dir=root / "feature_absorption",
        sparse_probing_experiment_dir=root / "k_sparse",
        probes_dir=root / "probes",
    )
    with (
        patched(absorption, "run_k_sparse_probing_experiment", sparse),
        patched(absorption, "run_feature_absortion_experiment", absorbed),
    ):
        yield
