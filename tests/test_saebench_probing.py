"""Traps of sae_bench 0.6.0's sparse probing, each shown in its own code, and what we do."""

from types import SimpleNamespace

import pytest
import torch

from bench.context import patched, sae_bench_on
from bench.fast.probe_data import mean_over_tokens
from bench.suite import Failed
from suites.sparse_probing import SparseProbingSuite
from tests import tiny
from tests.saebench import quiet, unchecked_sizes

ENGINES = ("reference", "fast")
SET = "fancyzhx/ag_news"
QUICK = {
    "dataset_names": (SET,),
    "probe_train_set_size": 40,
    "probe_test_set_size": 20,
    "context_length": 16,
    "lower_vram_usage": True,
}


def run(ctx, *handles, engine="reference", **changes):
    ctx.engine = engine
    config = SparseProbingSuite.Config(**(QUICK | changes))
    with quiet():
        return list(SparseProbingSuite(config).run(ctx, list(handles)))


def theirs(ctx, *labels, **changes):
    """sae_bench's accuracies of one SAE under several names, without our warming."""
    import sae_bench.evals.sparse_probing.main as probing

    suite = SparseProbingSuite(SparseProbingSuite.Config(**(QUICK | changes)))
    with sae_bench_on(ctx, "base"), quiet():
        results = probing.run_eval(
            suite._sae_bench_config(ctx),
            [(label, tiny.make_sae()) for label in labels],
            "cpu",
            str(ctx.work / "theirs"),
            artifacts_path=str(ctx.artifacts),
        )
    return [result["eval_result_unstructured"] for result in results.values()]


def sae_part(by_dataset):
    return {k: v for k, v in by_dataset[f"{SET}_results"].items() if k.startswith("sae_top")}


@pytest.mark.parametrize("engine", ENGINES)
def test_sae_bench_scores_the_first_sae_on_other_draws_ours_all_on_the_same(tmp_path, engine):
    first, second, third = theirs(tiny.context(tmp_path / "theirs"), "a", "b", "c")
    assert sae_part(first) != sae_part(second) == sae_part(third)
    ctx = tiny.context(tmp_path / "ours")
    ours = run(ctx, *map(tiny.handle, "abc"), engine=engine)
    assert ours[0].units == ours[1].units == ours[2].units
    assert sae_part(ours[0].saebench["eval_result_unstructured"]) == sae_part(second)


def test_sae_bench_takes_activations_of_another_length_from_its_cache_ours_does_not(tmp_path):
    ctx = tiny.context(tmp_path)
    theirs(ctx, "a", context_length=16)
    (short,), (again,) = theirs(ctx, "b", context_length=16), theirs(ctx, "c", context_length=6)
    assert short == again  # 6 tokens were asked for
    ours = tiny.context(tmp_path / "ours")
    ours.cache_gb = 1.0
    (long,) = run(ours, tiny.handle("a"), engine="fast", context_length=16)
    (short,) = run(ours, tiny.handle("a"), engine="fast", context_length=6)
    (long_again,) = run(ours, tiny.handle("a"), engine="fast", context_length=16)
    assert long.units == long_again.units != short.units
    (other,) = run(
        ours, tiny.handle("a"), engine="fast", context_length=16, probe_train_set_size=30
    )
    assert other.units != long.units


def test_their_probe_on_all_latents_picks_its_best_epoch_on_the_test_set_ours_is_no_headline():
    from sae_bench.evals.sparse_probing.probe_training import train_probe_gpu

    best, last = [], []
    for seed in range(8):
        torch.manual_seed(seed)
        x, y = torch.randn(100, 20), torch.randint(0, 2, (100,))  # nothing to be learnt
        with unchecked_sizes(), quiet(), torch.enable_grad():
            probe, accuracy = train_probe_gpu(
                x[:50], y[:50], x[50:], y[50:], 20, batch_size=25, epochs=40, lr=0.1
            )
            fresh = torch.randn(4000, 20), torch.randint(0, 2, (4000,))
            last.append(((probe(fresh[0]) > 0) == fresh[1]).float().mean().item())
        best.append(accuracy)
    assert sum(best) / 8 > 0.54  # reported
    assert abs(sum(last) / 8 - 0.5) < 0.02  # the same probes on other rows
    for metric in SparseProbingSuite.metrics:
        if metric.name.endswith(("sae_test_accuracy", "llm_test_accuracy")):
            assert metric.name.startswith("saebench060_")
            assert metric.direction == "none" and not metric.headline


def test_sae_bench_takes_a_token_that_sums_to_zero_for_padding_ours_goes_by_its_id():
    from sae_bench.sae_bench_utils.activation_collection import create_meaned_model_activations

    x = torch.tensor([[[1.0, -1.0], [3.0, 1.0], [0.0, 0.0]], [[0.0, 0.0]] * 3])
    mask = torch.tensor([[True, True, False], [False] * 3])
    with unchecked_sizes():
        mean = create_meaned_model_activations({"a": x})["a"]
    assert mean[0].tolist() == [4, 0]  # the sum of two tokens, divided by one
    assert mean[1].isnan().all()
    assert mean_over_tokens(x, mask).tolist() == [[2, 0], [0, 0]]


@pytest.mark.parametrize("what", ["a token", "a text"])
def test_the_reference_engine_refuses_what_sae_bench_would_leave_out(tmp_path, what):
    from sae_bench.sae_bench_utils import activation_collection

    ctx = tiny.context(tmp_path)
    original, is_text = (
        activation_collection.get_llm_activations,
        activation_collection.get_bos_pad_eos_mask,
    )

    def zeros_a_token(tokens, model, *args, **kwargs):
        x = original(tokens, model, *args, **kwargs)
        x[0, 1] = 0
        return x

    def empties_a_text(tokens, tokenizer):
        mask = is_text(tokens, tokenizer)
        mask[0] = False
        return mask

    name, changed = (
        ("get_llm_activations", zeros_a_token)
        if what == "a token"
        else ("get_bos_pad_eos_mask", empties_a_text)
    )
    with (
        patched(activation_collection, name, changed),
        pytest.raises(RuntimeError, match="sum to 0 and divide by zero.*engine: fast"),
    ):
        run(ctx, tiny.handle("a"))


def test_the_batch_sizes_of_sae_bench_know_six_models_ours_come_from_the_config(tmp_path):
    import sae_bench.evals.sparse_probing.main as probing
    from sae_bench.sae_bench_utils.activation_collection import LLM_NAME_TO_BATCH_SIZE

    assert len(LLM_NAME_TO_BATCH_SIZE) == 6
    known = {"llm_batch_size", "llm_dtype", "sae_batch_size", "random_seed"}
    args = SimpleNamespace(**dict.fromkeys(known), model_name="nano")
    with pytest.raises(KeyError, match="nano"):
        probing.create_config_and_selected_saes(args)
    for engine in ENGINES:
        results = [
            run(
                tiny.context(tmp_path / f"{engine}{n}"),
                tiny.handle("a"),
                engine=engine,
                llm_batch_size=n,
            )[0]
            for n in (3, 32)
        ]
        assert not [r for r in results if isinstance(r, Failed)]
        assert results[0].metrics == pytest.approx(results[1].metrics)
