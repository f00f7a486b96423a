"""The four suites on the shipped nano pair, each in its own process, as a run does it."""

from pathlib import Path

import pytest

from bench import models
from bench.config import ControlConfig, RunConfig, TrainConfig, VariantConfig
from bench.run import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (models.NANO_WEIGHTS / "instruct" / "config.json").is_file(),
        reason="the nano weights are not built",
    ),
]
SUITES = {
    "core": {"n_eval_reconstruction_batches": 2, "n_eval_sparsity_variance_batches": 4},
    "sparse_probing": {
        "probe_train_set_size": 400,
        "probe_test_set_size": 200,
        "context_length": 64,
        "llm_batch_size": 64,
    },
    "absorption": {
        "llm_batch_size": 64,
        "k_sparse_probe_batch_size": 1024,
        "eval_k_sparse_probe_batch_size": 512,
        "precalc_k_sparse_probe_sae_acts": True,
    },
    "unlearning": {
        "dataset_size": 128,
        "seq_len": 128,
        "llm_batch_size": 32,
        "multipliers": [25],
        "n_features_list": [10],
    },
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Cells of one trained SAE and the mean on every suite, by suite and role."""
    config = RunConfig(
        name="shipped",
        model="nano",
        hook_name="blocks.2.hook_resid_post",
        train=TrainConfig(d_sae=768, tokens=200_000, batch_size=1024, lr=1e-3),
        variants=(VariantConfig("topk", {"k": 8}),),
        controls=(ControlConfig("mean"),),
        suites=SUITES,
    )
    found = run(config, tmp_path_factory.mktemp("run") / "out", lambda *args, **kwargs: None)
    return {(cell.suite, cell.sae.role): cell for cell in found}


@pytest.mark.parametrize("suite", SUITES)
def test_a_trained_sae_is_scored(cells, suite):
    cell = cells[suite, "trained"]
    assert cell.state == "ok", cell.detail or cell.reason
    assert all(m.value is not None for m in cell.metrics if m.headline)
    assert cell.units


def test_it_reconstructs_and_its_latents_tell_concepts_apart(cells):
    metrics = {m.name: m.value for (_, r), c in cells.items() if r == "trained" for m in c.metrics}
    assert metrics["explained_variance"] > 0.7
    assert metrics["ce_loss_score"] > 0.8
    assert metrics["sae_top_1_test_accuracy"] > 0.65
    assert metrics["n_letters"] >= 20
    assert metrics["n_hazard_questions"] >= 80
    assert abs(metrics["chat_explained_variance"] - metrics["explained_variance"]) < 0.15


@pytest.mark.parametrize(
    ("suite", "state"),
    [
        ("core", "ok"),
        ("sparse_probing", "ok"),
        ("absorption", "invalid"),
        ("unlearning", "invalid"),
    ],
)
def test_the_mean_has_no_score_where_silence_wins(cells, suite, state):
    assert cells[suite, "control"].state == state


def test_nothing_is_written_into_the_installed_package(cells):
    import sae_bench

    assert not (Path(sae_bench.__path__[0]) / "artifacts").exists()
