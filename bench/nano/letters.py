"""How many first letters can be read off a layer: sae_bench's own ground-truth probes."""

import tempfile
from pathlib import Path

import torch

from bench.context import process_state
from bench.models import ModelSpec, load_model

SEED = 0
PROBE_F1 = 0.6
"""sae_bench's `min_GT_probe_f1` (evals/absorption/eval_config.py)."""


def probed_letters(folder: Path, layer: int) -> int:
    """Letters whose probe F1 on held-out words exceeds PROBE_F1, for the checkpoint in `folder`."""
    from sae_bench.evals.absorption import common, prompting
    from sklearn.metrics import f1_score

    spec = ModelSpec("nano-probe", "nano", str(folder.resolve()), "base", n_layers=layer + 1)
    model = load_model(spec)
    with tempfile.TemporaryDirectory() as probes, process_state(SEED):
        common.train_and_save_probes(
            model,
            layers=[layer],
            base_template=prompting.VERBOSE_FIRST_LETTER_TEMPLATE,
            pos_idx=prompting.VERBOSE_FIRST_LETTER_TOKEN_POS,
            probes_dir=probes,
            device="cpu",
        )
        probe = common.load_probe(spec.name, layer, probes, device="cpu")
        x, labelled = common.load_probe_data_split(model, layer, "test", probes, device="cpu")
    with torch.no_grad():
        fires = (probe(x) > 0).numpy()
    letters = [letter for _, letter in labelled]
    scores = [f1_score([a == i for a in letters], fires[:, i]) for i in range(fires.shape[1])]
    return sum(score > PROBE_F1 for score in scores)
