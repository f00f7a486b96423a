"""core's fast engine gives sae_bench's numbers bit for bit, from less work.

Tolerance: none, for every metric of sae_bench, its file, and ours (float32, CPU).
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.fast import workload
from bench.fast.core import largest_similarities
from bench.fast.resume import HookPoint
from bench.moments import Divergence, divergence
from bench.suite import Failed
from suites.core import CoreSuite
from tests import nano, tiny

B, T, N_LOSS, N_VARIANCE = 4, 32, 3, 2
SETTINGS = {
    "batch_size_prompts": B,
    "n_eval_reconstruction_batches": N_LOSS,
    "n_eval_sparsity_variance_batches": N_VARIANCE,
    "context_size": T,
}
OF_THE_MOMENT = ("eval_id", "datetime_epoch_millis")
RESIDUAL = "hook_resid_post"


def run(ctx, handles, **settings) -> list[Any]:
    return list(CoreSuite(CoreSuite.Config(**(SETTINGS | settings))).run(ctx, handles))


def lasting(raw):
    """sae_bench's file without what changes on every run."""
    return {key: value for key, value in raw.items() if key not in OF_THE_MOMENT}


def assert_same(reference, fast):
    assert fast.metrics == reference.metrics
    assert fast.units == reference.units
    assert fast.reasons == reference.reasons
    assert fast.invalid == reference.invalid
    assert lasting(fast.saebench) == lasting(reference.saebench)


@pytest.fixture(scope="module")
def on_nano(tmp_path_factory):
    """Results of both engines for five kinds of SAE on the shipped model, by engine and kind."""
    found = {}
    for engine in ("reference", "fast"):
        ctx = nano.context(tmp_path_factory.mktemp(engine), engine=engine)
        handles = nano.handles(*nano.KINDS, "gated")
        results = run(ctx, handles, exclude_special_tokens_from_reconstruction=True)
        found[engine] = {scored.label: scored for scored in results}
    return found


@pytest.mark.parametrize("kind", [*nano.KINDS, "gated"])  # the last has no b_enc
def test_every_number_is_sae_benchs(on_nano, kind):
    assert_same(on_nano["reference"][kind], on_nano["fast"][kind])


def test_every_declared_metric_has_a_value(on_nano):
    assert {m.name for m in CoreSuite.metrics} == set(on_nano["fast"]["topk"].metrics)
    assert None not in on_nano["fast"]["topk"].metrics.values()
    assert on_nano["fast"]["topk"].metrics["l0_suite"] == 6


@pytest.mark.parametrize("kind", nano.KINDS)
def test_the_work_is_what_the_formulas_say(on_nano, kind):
    tokens = workload.CoreTokens(N_LOSS * B * T, N_VARIANCE * B * T, context=T)
    reference = workload.core(workload.Depth(5, 3), tokens, "reference")
    fast = workload.core(workload.Depth(5, 3), tokens, "fast")
    assert on_nano["reference"][kind].work == reference.own.recorded()
    assert on_nano["fast"][kind].work == fast.own.recorded(fast.shared)
    # three passes per batch of losses against one from the hook on
    assert reference.own.lm_block_tokens == 3 * N_LOSS * B * T * 5 + N_VARIANCE * B * T * 3
    assert fast.own.lm_block_tokens == N_LOSS * B * T * 2


def test_shared_work_does_not_grow_with_the_number_of_saes(tmp_path, on_nano):
    (alone,) = run(nano.context(tmp_path, engine="fast"), nano.handles("topk"))
    assert alone.work == on_nano["fast"]["topk"].work


@pytest.mark.parametrize("kind", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out"])
@pytest.mark.parametrize("keep_special", [False, True])
def test_other_hooks_and_tokens_give_sae_benchs_numbers_too(tmp_path, kind, keep_special):
    results = []
    for engine in ("reference", "fast"):
        ctx = tiny.context(tmp_path / engine)
        ctx.engine = engine
        handle = tiny.handle("a")
        handle.sae.cfg.metadata.hook_name = f"blocks.1.{kind}"
        setting = {"exclude_special_tokens_from_reconstruction": keep_special}
        results += run(ctx, [handle], **setting)
    assert_same(*results)


def test_saes_of_several_hooks_come_back_in_order(tmp_path):
    ctx = tiny.context(tmp_path)
    ctx.engine = "fast"
    handles = [tiny.handle(label, tiny.make_sae(seed=i)) for i, label in enumerate("abc")]
    handles[1].sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    together = run(ctx, handles)
    assert [scored.label for scored in together] == ["a", "b", "c"]
    for handle, scored in zip(handles, together):
        assert run(ctx, [handle])[0].metrics == scored.metrics


def test_an_sae_that_fails_does_not_stop_the_others(tmp_path):
    ctx = tiny.context(tmp_path)
    ctx.engine = "fast"
    broken = tiny.make_sae()
    calls = []

    def encode(x):
        calls.append(x)
        raise ValueError("no such latent")

    broken.encode = encode
    good, bad, last = run(
        ctx, [tiny.handle("good"), tiny.handle("bad", broken), tiny.handle("last")]
    )
    assert isinstance(bad, Failed) and str(bad.error) == "no such latent"
    assert good.metrics == last.metrics
    assert len(calls) == 1  # not tried again on every batch


def test_tokens_are_read_once_per_setting(tmp_path, monkeypatch):
    ctx = tiny.context(tmp_path)
    ctx.engine, ctx.cache_gb = "fast", 1.0
    loads = []
    original = ctx.hub.load_dataset

    def load(*args, **kwargs):
        loads.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(ctx.hub, "load_dataset", load)
    first = run(ctx, [tiny.handle("a")])
    assert len(loads) == 1
    assert run(ctx, [tiny.handle("a")])[0].metrics == first[0].metrics
    assert len(loads) == 1
    run(ctx, [tiny.handle("a")], context_size=T // 2)
    assert len(loads) == 2


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", tiny.HOOK, "blocks.2.hook_mlp_out"])
def test_going_on_from_a_hook_equals_a_pass_with_a_hook(tmp_path, hook):
    model = tiny.context(tmp_path).model("base")
    tokens = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    point = HookPoint(model, hook)
    with torch.no_grad():
        clean = point.clean(tokens)
        assert torch.equal(clean.logits, model(tokens))
        assert torch.equal(clean.x, model.run_with_cache(tokens)[1][hook])
        assert torch.equal(clean.x, point.up_to(tokens))
        new = clean.x * 0.5 + 1
        expected = model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda x, hook: new)])
        assert torch.equal(point.onwards(clean.start, new, tokens), expected)


def test_zeros_in_the_residual_stream_are_the_same_everywhere_with_biases_too():
    """One context of zeros stands for every batch: exactly, also where positions differ by 1e-5."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    from bench.fast.core import _zero_ablated

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "n_layers": 4,
        "d_model": 32,
        "n_ctx": 32,
        "d_head": 8,
        "d_mlp": 64,
        "d_vocab": 50,
    }
    model = HookedTransformer(HookedTransformerConfig(act_fn="gelu", **sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "b_" in name:
                parameter.normal_()
        hook = "blocks.1.hook_resid_post"
        batches = torch.randint(0, 50, (2, 3, 20))
        zeroed = _zero_ablated(HookPoint(model, hook), batches)
        for tokens in batches:
            expected = model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda x, hook: x * 0)])
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(zeroed.expand_as(expected), expected, rtol=0, atol=1e-5)


@given(d_in=st.integers(1, 6), d_sae=st.integers(2, 230), seed=st.integers(0, 9))
def test_largest_similarities_are_sae_benchs(d_in, d_sae, seed):
    from sae_bench.evals.core.main import calculate_max_cosine_sim

    vectors = torch.randn(d_in, d_sae, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(largest_similarities(vectors), calculate_max_cosine_sim(vectors))


def test_divergence_survives_where_the_logarithm_of_a_softmax_does_not():
    clean = torch.tensor([[0.0, 0.0, -200.0]])
    new = torch.tensor([[300.0, 0.0, 0.0]])
    p, q = clean.double().softmax(-1), new.double().log_softmax(-1)
    expected = (p * (p.log() - q)).sum(-1)
    found = divergence(clean.softmax(-1), clean.log_softmax(-1), new.log_softmax(-1))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    theirs = clean.softmax(-1) * (clean.softmax(-1).log() - new.softmax(-1).log())
    assert not torch.isfinite(theirs.sum())


def test_the_divergence_score_is_a_share_over_counted_tokens():
    score, mask = Divergence(), torch.tensor([[True, False, True]])
    score.add(torch.tensor([[1.0, 50.0, 2.0]]), torch.tensor([[4.0, 0.0, 8.0]]), mask)
    score.add(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[12.0, 0.0, 0.0]]), mask)
    assert score.score == pytest.approx(1 - 6 / 24)
