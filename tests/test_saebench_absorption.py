"""Traps of sae_bench 0.6.0's absorption, each shown in its own code, and what we do."""

import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import worker
from bench.absorption.config import for_saebench
from bench.absorption.engine import probes_in, seeded
from bench.absorption.letters import letters_of
from bench.absorption.reference import Reference, _redirected
from bench.check.saved_points import rows_are_unit
from bench.context import sae_bench_on
from bench.doctor.tokens import word_position
from suites.absorption import AbsorptionSuite
from tests import tiny
from tests.saebench import quiet

LAYER = 1
QUICK = {
    "llm_batch_size": 64,
    "max_k_value": 2,
    "k_sparse_probe_num_epochs": 1,
    "eval_k_sparse_probe_batch_size": 512,
    "precalc_k_sparse_probe_sae_acts": True,
    "min_GT_probe_f1": -1.0,
    "min_feats_for_eval": 2,
}
TEMPLATE = "{word} has the first letter:"


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    """Six of sae_bench's words per letter."""
    import sae_bench.evals.absorption.common as common
    import sae_bench.evals.absorption.feature_absorption as feature_absorption
    import sae_bench.evals.absorption.vocab as vocab

    original = vocab.get_alpha_tokens

    def words(tokenizer):
        by_letter = {}
        for word in sorted(original(tokenizer)):
            by_letter.setdefault(word.strip()[0].lower(), []).append(word)
        return [w for group in by_letter.values() for w in group[:6]]

    for module in (vocab, common, feature_absorption):
        monkeypatch.setattr(module, "get_alpha_tokens", words)


def config(**changes):
    return AbsorptionSuite.Config(**(QUICK | changes))


def probe_of(ctx, folder, template=TEMPLATE):
    """Weights of sae_bench's own letter probe, from its cache in `folder` if there is one."""
    from sae_bench.evals.absorption.common import load_or_train_probe

    with torch.enable_grad(), quiet():
        probe = load_or_train_probe(
            ctx.model("base"), template, -6, layer=LAYER, probes_dir=folder, device="cpu"
        )
    return probe.weights.detach()


def test_sae_bench_keeps_its_caches_in_the_installed_package_and_forgets_the_template(tmp_path):
    import sae_bench
    from sae_bench.evals.absorption import common

    package = Path(sae_bench.__path__[0])
    assert common.PROBES_DIR.is_relative_to(package)  # what run_eval uses, whatever the user wants
    ctx = tiny.context(tmp_path)
    first = probe_of(ctx, tmp_path / "probes")
    other = "\n{word} begins with the first letter:"
    assert torch.equal(first, probe_of(ctx, tmp_path / "probes", other))  # not asked again
    assert not torch.equal(first, probe_of(ctx, tmp_path / "fresh", other))


@pytest.mark.parametrize("change", ["template", "position", "seed", "dtype"])
def test_our_cache_of_letters_knows_what_decides_them(tmp_path, change):
    ctx = tiny.context(tmp_path)
    ctx.cache_gb = 1.0
    asked = config()
    before = letters_of(ctx, asked, LAYER)
    assert torch.equal(letters_of(ctx, asked, LAYER).weight, before.weight)
    if change == "seed":
        ctx.seed += 1
    elif change == "dtype":
        ctx.dtype = "bfloat16"
    elif change == "position":
        asked = config(prompt_token_pos=-5)
    else:
        asked = config(prompt_template="\n{word} begins with the first letter:")
    n_files = len(list(ctx.artifacts.rglob("*")))
    letters_of(ctx, asked, LAYER)
    assert len(list(ctx.artifacts.rglob("*"))) > n_files


def test_sae_bench_stores_a_seed_and_draws_from_whatever_state_there_is_ours_from_the_seed(
    tmp_path,
):
    ctx = tiny.context(tmp_path)
    weights = []
    for state in (1, 2):
        random.seed(state), torch.manual_seed(state)
        weights.append(probe_of(ctx, tmp_path / f"theirs{state}"))
    assert not torch.equal(*weights)
    of_run, shared = [], []
    for state in (1, 2):
        random.seed(state), torch.manual_seed(state)
        ours = tiny.context(tmp_path / f"ours{state}")
        with quiet():
            Reference(ours, config()).prepare(LAYER)
            shared.append(letters_of(ours, config(), LAYER).weight)
        of_run.append(probe_of(ours, ours.artifacts / "absorption/probes"))
    assert torch.equal(*of_run) and torch.equal(*shared) and torch.equal(of_run[0], shared[0])


def test_letter_probes_have_the_precision_of_the_run_not_that_of_the_machine(tmp_path):
    from sae_bench.evals.absorption import common

    ctx = tiny.context(tmp_path)
    usual = common.load_or_train_probe.__defaults__
    assert common.DEFAULT_DTYPE in usual  # bfloat16 where there is a GPU
    for dtype in ("bfloat16", "float32"):  # whichever of them is not the machine's
        with probes_in(dtype):
            for load in (common.load_or_train_probe, common.load_probe_data_split_or_train):
                assert getattr(torch, dtype) in load.__defaults__
            assert probe_of(ctx, tmp_path / "probes").dtype == getattr(torch, dtype)
    assert common.load_or_train_probe.__defaults__ == usual
    with seeded(ctx), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctx, "dtype", "bfloat16")
        with seeded(ctx):
            assert torch.bfloat16 in common.load_or_train_probe.__defaults__


def theirs(ctx, *labels, **changes):
    """The SAEs that sae_bench returns results of."""
    import sae_bench.evals.absorption.main as absorption

    cfg = config(**changes)
    (ctx.work / "theirs").mkdir(parents=True, exist_ok=True)
    with seeded(ctx), _redirected(ctx.artifacts / "absorption", absorption), quiet():
        results = absorption.run_eval(
            for_saebench(cfg, ctx),
            [(label, tiny.make_sae()) for label in labels],
            "cpu",
            str(ctx.work / "theirs"),
        )
    return list(results)


def test_too_few_letters_end_sae_benchs_list_without_a_word_ours_has_a_reason_for_each(tmp_path):
    few = {"min_GT_probe_f1": 0.9999}
    assert theirs(tiny.context(tmp_path), "a", "b", **few) == []
    for engine in ("reference", "fast"):
        ctx = tiny.context(tmp_path / engine)
        ctx.engine = engine
        reason = why_not(ctx, tiny.handle("a", l0=20.0), config(**few))
        assert re.match(r"only \d+ letters .*'nano'.*min_feats_for_eval=2", reason)


def why_not(ctx, handle, cfg):
    """The error of an SAE, raised or handed on."""
    try:
        with quiet():
            (answer,) = AbsorptionSuite(cfg).run(ctx, [handle])
    except RuntimeError as error:
        return str(error)
    return str(answer.error)


def test_a_position_that_is_not_the_words_is_seen_before_a_run():
    cfg = config()
    assert word_position("absorption", cfg, tiny.tokenizer()).state == "pass"
    for position in (-7, -5, -1):
        check = word_position("absorption", config(prompt_token_pos=position), tiny.tokenizer())
        assert check.state == "fail"
        assert f"`prompt_token_pos: {cfg.prompt_token_pos}`" in check.fix


def words_of(ctx, sae, layer=LAYER):
    """sae_bench's results for some words, and the activations that the SAE was handed."""
    from sae_bench.evals.absorption.feature_absorption import get_alpha_tokens
    from sae_bench.evals.absorption.feature_absorption_calculator import (
        FeatureAbsorptionCalculator,
    )

    seen, encode = [], sae.encode

    def encoded(x):
        seen.append(x)
        return encode(x)

    sae.encode = encoded
    try:
        with sae_bench_on(ctx, "base") as model, quiet():
            words = get_alpha_tokens(model.tokenizer)
            calculator = FeatureAbsorptionCalculator(
                model, words, max_icl_examples=5, base_template=TEMPLATE, word_token_pos=-6
            )
            direction = torch.ones(tiny.D_MODEL)
            found = calculator.calculate_absorption(
                sae, words[:2], direction, [0], layer, show_progress=False
            )
    finally:
        sae.encode = encode
    return [w.top_projection_feature_scores for w in found.word_results], torch.cat(seen)


def test_sae_benchs_projections_scale_with_the_decoder_and_check_asks_for_unit_rows(tmp_path):
    ctx, sae = tiny.context(tmp_path), tiny.make_sae()
    before, _ = words_of(ctx, sae)
    x = torch.randn(16, tiny.D_MODEL)
    x_hat = sae(x)
    with torch.no_grad():  # the same SAE, written otherwise
        sae.W_enc.div_(4), sae.b_enc.div_(4), sae.W_dec.mul_(4)
    torch.testing.assert_close(sae(x), x_hat)
    after, _ = words_of(ctx, sae)
    for one, other in zip(before, after):
        assert [4 * s.probe_projection for s in other] == pytest.approx(
            [s.probe_projection for s in one], rel=1e-4
        )
    rehearsal = SimpleNamespace(exported=SimpleNamespace(state={"W_dec": sae.W_dec}))
    (problem,) = rows_are_unit(rehearsal)
    assert "decoder rows have norms" in problem.message


def test_sae_bench_reads_behind_the_block_whatever_the_hook_ours_skips_other_hooks(tmp_path):
    ctx, sae = tiny.context(tmp_path), tiny.make_sae()
    sae.cfg.metadata.hook_name = f"blocks.{LAYER}.hook_mlp_out"
    assert AbsorptionSuite.hooks == ("hook_resid_post",)
    scores, x = words_of(ctx, sae)
    sae.cfg.metadata.hook_name = tiny.HOOK
    same, resid = words_of(ctx, sae)
    assert torch.equal(x, resid) and scores == same  # of another place than it was trained on


def test_an_sae_on_another_hook_is_skipped_by_the_worker(monkeypatch):
    settled = []
    monkeypatch.setattr(worker, "_skip", lambda job, cell, reason: settled.append(reason))
    cell = SimpleNamespace(sae=SimpleNamespace(hook_name="blocks.1.hook_mlp_out", label="a"))
    job = SimpleNamespace(suite="absorption")
    assert worker._handle(job, cell, AbsorptionSuite(config())) is None
    assert settled == ["suite 'absorption' can only score hook_resid_post, not hook_mlp_out"]


def test_single_tokens_reach_an_sae_here_and_contexts_elsewhere(tmp_path):
    _, x = words_of(tiny.context(tmp_path), tiny.make_sae())
    assert x.ndim == 2  # [n, d_in]: an SAE that reads a context has nothing to read
