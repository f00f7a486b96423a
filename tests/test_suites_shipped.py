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
        "dataset_size": 400,
        "seq_len": 128,
        "llm_batch_size": 32,
        "retain_thresholds": [0.0005, 0.001],
        "multipliers": [200],
        "n_features_list": [40, 80],
    },
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Cells of a trained SAE, a random one and the mean on every suite, by suite and variant."""
    config = RunConfig(
        name="shipped",
        model="nano",
        hook_name="blocks.2.hook_resid_post",
        train=TrainConfig(d_sae=1536, tokens=500_000, batch_size=256, lr=2e-3),
        variants=(VariantConfig("topk", {"k": 4}),),
        controls=(ControlConfig("random", 4.0), ControlConfig("mean")),
        suites=SUITES,
    )
    found = run(config, tmp_path_factory.mktemp("run") / "out", lambda *args, **kwargs: None)
    return {(cell.suite, cell.sae.variant): cell for cell in found}


@pytest.mark.parametrize("suite", SUITES)
def test_a_trained_sae_is_scored(cells, suite):
    cell = cells[suite, "topk"]
    assert cell.state == "ok", cell.detail or cell.reason
    assert all(m.value is not None for m in cell.metrics if m.headline)
    assert cell.units


def metrics_of(cells, variant):
    found = (cell for (_, name), cell in cells.items() if name == variant)
    return {m.name: m.value for cell in found for m in cell.metrics}


def test_a_trained_sae_reconstructs_and_the_world_gives_the_suites_enough(cells):
    metrics = metrics_of(cells, "topk")
    assert metrics["explained_variance"] > 0.9
    assert metrics["ce_loss_score"] > 0.95
    assert metrics["n_letters"] >= 20
    assert metrics["n_hazard_questions"] >= 80
    assert abs(metrics["chat_explained_variance"] - metrics["explained_variance"]) < 0.1


@pytest.mark.parametrize(
    ("metric", "by"),
    [
        ("explained_variance", 0.4),
        ("ce_loss_score", 0.3),
        ("sae_top_1_test_accuracy", 0.04),
        ("saebench060_unlearning_score", 0.15),
    ],
)
def test_training_is_told_apart_from_a_random_dictionary_of_the_same_l0(cells, metric, by):
    assert metrics_of(cells, "topk")[metric] > metrics_of(cells, "random")[metric] + by


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
    assert cells[suite, "mean"].state == state


def test_nothing_is_written_into_the_installed_package(cells):
    import sae_bench

    assert not (Path(sae_bench.__path__[0]) / "artifacts").exists()
