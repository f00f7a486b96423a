"""Traps of sae_bench 0.6.0's core, each shown in its own code and beside it what we do."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch

from bench.check.saved_points import suites_can_read_it
from bench.context import patched, sae_bench_on
from bench.moments import Corrections
from suites.core import CoreSuite, observed
from tests import tiny
from tests.saebench import Activations, Constant, quiet

ENGINES = ("reference", "fast")
QUICK = CoreSuite.Config(
    batch_size_prompts=4,
    n_eval_reconstruction_batches=1,
    n_eval_sparsity_variance_batches=1,
    context_size=32,
)
D = 8


def variance(sae, x, n_batches):
    """sae_bench's metrics of x [n, T, d] in so many batches, and ours from the same calls."""
    import sae_bench.evals.core.main as core

    ours, source = Corrections(), Activations(x)
    with observed(core, sae, ours):
        theirs, _ = core.get_sparsity_and_variance_metrics(
            sae,
            source,
            source,
            n_batches=n_batches,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            eval_batch_size_prompts=len(x) // n_batches,
            model_kwargs={},
            ignore_tokens=set(),
        )
    return theirs, ours.moments


def activations(n=8):
    return 3 + torch.randn(n, 16, D, generator=torch.Generator().manual_seed(0))


def run(ctx, *handles, engine):
    ctx.engine = engine
    return list(CoreSuite(QUICK).run(ctx, list(handles)))


def test_their_explained_variance_of_predicting_the_mean_is_above_1_ours_is_0():
    from sae_lens.evals import ExplainedVarianceCalculator

    x = activations()
    mean = x.flatten(0, 1).mean(0)
    theirs, ours = variance(Constant(mean), x, n_batches=2)
    reference = ExplainedVarianceCalculator()
    reference.add_batch(mean.expand(x.flatten(0, 1).shape), x.flatten(0, 1))
    assert theirs["explained_variance"] > 1
    assert ours.explained_variance == pytest.approx(0, abs=1e-6)
    assert reference.compute() == pytest.approx(0, abs=1e-4)


def test_their_squared_error_doubles_with_half_the_batch_ours_stays():
    x = activations()
    sae = Constant(torch.zeros(D))
    whole, halves = (variance(sae, x, n_batches) for n_batches in (1, 2))
    assert halves[0]["mse"] == pytest.approx(2 * whole[0]["mse"])
    expected = x.double().pow(2).sum(-1).mean().item()
    assert halves[1].mse == pytest.approx(expected) and whole[1].mse == pytest.approx(expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_corrected_value_is_ours_and_sae_benchs_keeps_its_name(tmp_path, engine):
    (scored,) = run(tiny.context(tmp_path), tiny.handle("a"), engine=engine)
    file = scored.saebench["eval_result_metrics"]
    quality = file["reconstruction_quality"]
    for name in ("explained_variance", "explained_variance_legacy", "mse"):
        assert scored.metrics[f"saebench060_{name}"] == quality[name]
    kl = file["model_behavior_preservation"]["kl_div_score"]
    assert scored.metrics["saebench060_kl_div_score"] == kl
    assert scored.metrics["explained_variance"] != quality["explained_variance"]
    n_tokens = next(u.n for u in scored.units if u.metric == "explained_variance")
    assert scored.metrics["mse"] == pytest.approx(n_tokens * quality["mse"], rel=1e-5)
    assert scored.metrics["kl_div_score"] == pytest.approx(kl, rel=1e-4)
    headlines = {m.name for m in CoreSuite.metrics if m.headline}
    assert not [name for name in headlines if name.startswith("saebench060_")]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_divergence_that_underflows_is_theirs_to_lose_not_ours(tmp_path, engine):
    ctx = tiny.context(tmp_path)
    model = copy.deepcopy(ctx.model("base"))
    model.cfg.output_logits_soft_cap = -1.0
    with torch.no_grad():
        model.W_U.mul_(1000)  # logits too far apart for a softmax in single precision
    ctx._models["base"] = model
    (scored,) = run(ctx, tiny.handle("a"), engine=engine)
    assert scored.metrics["saebench060_kl_div_score"] is None
    assert "sae_bench computed" in scored.reasons["saebench060_kl_div_score"]
    written = scored.saebench["eval_result_metrics"]["model_behavior_preservation"]
    assert written["kl_div_score"] == -1
    ours = scored.metrics["kl_div_score"]
    assert ours is not None and math.isfinite(ours) and ours != -1


def test_sae_bench_writes_minus_one_for_a_nan_and_keeps_an_infinity():
    import sae_bench.evals.core.main as core

    found = core.replace_nans_with_negative_one({"a": math.nan, "b": [math.inf]})
    assert found == {"a": -1, "b": [math.inf]}


def broken():
    sae = tiny.make_sae()

    def encode(x):
        raise ValueError("no such latent")

    sae.encode = encode
    return sae


def theirs(ctx, saes, *, weights=True, density=True):
    """The SAEs that sae_bench returns results of."""
    import sae_bench.evals.core.main as core

    with sae_bench_on(ctx, "base"), quiet():
        results = core.multiple_evals(
            saes,
            n_eval_reconstruction_batches=1,
            n_eval_sparsity_variance_batches=1,
            eval_batch_size_prompts=2,
            compute_featurewise_density_statistics=density,
            compute_featurewise_weight_based_metrics=weights,
            context_size=16,
            output_folder=str(ctx.work / "theirs"),
            device="cpu",
            force_rerun=True,
        )
    return [result["sae_set"] for result in results]


def why_not(ctx, handle, engine):
    """The error of an SAE, raised or handed on."""
    try:
        (answer,) = run(ctx, handle, engine=engine)
    except RuntimeError as error:
        return str(error)
    return str(answer.error)


def test_sae_bench_drops_an_sae_that_fails_ours_says_why(tmp_path):
    ctx = tiny.context(tmp_path)
    saes = [("broken", broken()), ("good", tiny.make_sae())]
    assert theirs(ctx, saes) == ["good"]
    for engine in ENGINES:
        assert "no such latent" in why_not(ctx, tiny.handle("broken", broken()), engine)


def test_sae_bench_loses_every_sae_when_one_of_two_flags_is_off_ours_sets_both(tmp_path):
    ctx = tiny.context(tmp_path)
    assert theirs(ctx, [("a", tiny.make_sae())], weights=False) == []
    for engine in ENGINES:
        (scored,) = run(ctx, tiny.handle("a"), engine=engine)
        (feature, *_) = scored.saebench["eval_result_details"]
        assert {"feature_density", "encoder_norm"} <= set(feature)


def test_after_a_model_failed_to_load_sae_bench_cannot_go_on_ours_names_the_model(tmp_path):
    import sae_bench.evals.core.main as core
    from sae_bench.sae_bench_utils import general_utils
    from transformer_lens import HookedTransformer

    ctx = tiny.context(tmp_path)

    def fails(*args, **kwargs):
        raise OSError("no such model")

    saes = [("a", tiny.make_sae()), ("b", tiny.make_sae())]
    with (
        quiet(),
        patched(general_utils.time, "sleep", lambda s: None),
        patched(HookedTransformer, "from_pretrained_no_processing", fails),
        pytest.raises(UnboundLocalError, match="current_model"),
    ):
        core.multiple_evals(saes, 1, 1, output_folder=str(tmp_path / "out"), device="cpu")
    ctx._models.clear()
    missing = str(tmp_path / "missing")
    ctx.spec = SimpleNamespace(**(vars(ctx.spec) | {"source": missing}))
    for engine in ENGINES:
        with pytest.raises(Exception, match="missing"):
            run(ctx, tiny.handle("a"), engine=engine)


def test_sae_bench_needs_an_encoder_matrix_and_check_says_so_before_a_run():
    import sae_bench.evals.core.main as core

    sae = tiny.make_sae()
    weights = sae.W_enc.data.clone()
    del sae.W_enc
    with pytest.raises(AttributeError, match="W_enc"):
        core.get_featurewise_weight_based_metrics(sae)
    sae.encode = lambda x: torch.relu(x @ weights.to(x.dtype))
    rehearsal = SimpleNamespace(x=torch.randn(64, tiny.D_MODEL), saved=SimpleNamespace(sae=sae))
    (problem,) = suites_can_read_it(rehearsal)
    assert "no W_enc" in problem.message


def test_results_carry_the_version_of_sae_bench_not_the_commit_of_where_it_runs(tmp_path):
    import subprocess

    from sae_bench.sae_bench_utils import get_sae_bench_version

    from bench.context import working_directory
    from bench.keys import versions

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "not sae_bench"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "plain").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "plain")
        assert len(get_sae_bench_version()) == 40  # the commit of the user's own repository
        with working_directory(tmp_path / "run"):
            assert get_sae_bench_version() == "Unknown"
        assert len(get_sae_bench_version()) == 40
    assert versions()["sae-bench"] == "0.6.0"
    json.dumps(versions())
