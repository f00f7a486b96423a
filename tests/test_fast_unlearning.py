"""Unlearning's fast engine gives sae_bench's answers, question by question, from less work."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from bench.counters import counting
from bench.datasets import LocalHub
from bench.suite import Failed
from bench.unlearning import grid
from bench.unlearning.asking import LETTERS, last_position
from bench.unlearning.clamping import Clamping
from bench.unlearning.engine import make_engine
from suites.unlearning import UnlearningSuite
from tests import nano, tiny

SIDE = ("high_school_us_history", "human_aging")
QUESTIONS = 12
CFG = UnlearningSuite.Config(
    dataset_names=("wmdp-bio", *SIDE),
    retain_thresholds=(0.02, 0.2),
    n_features_list=(5, 40),
    multipliers=(10, 100),
    dataset_size=6,
    seq_len=64,
    llm_batch_size=16,
    relative_multipliers=(0.5, 4.0),
    min_questions=2,
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Some questions per set."""
    root = tmp_path_factory.mktemp("data")
    names = ["cais/wmdp/wmdp-bio", *(f"cais/mmlu/{name}" for name in SIDE)]
    files = [f"{name}/test.jsonl" for name in names]
    texts = ["wikitext/wikitext-2-raw-v1/test.jsonl", "bio-forget-corpus/train.jsonl"]
    for file, n_rows in [*((f, QUESTIONS) for f in files), *((t, None) for t in texts)]:
        lines = (tiny.data() / file).read_text().splitlines(keepends=True)
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text("".join(lines[:n_rows]))
    return LocalHub(root)


@pytest.fixture(scope="module")
def engines(tmp_path_factory, hub):
    """Both engines, ready."""
    made = {}
    for name in ("reference", "fast"):
        ctx = nano.context(tmp_path_factory.mktemp(name), hub, engine=name)
        made[name] = make_engine(ctx, CFG, nano.handles())
        made[name].prepare()
    return made


@pytest.fixture(scope="module")
def tried(engines):
    """(engine, kind of SAE) -> what came out."""
    return {
        (name, handle.label): engine.tried(handle)
        for name, engine in engines.items()
        for handle in nano.handles()
    }


@pytest.mark.parametrize("kind", nano.KINDS)
def test_every_answer_under_every_setting_is_sae_benchs(tried, kind):
    assert tried["fast", kind].settings == tried["reference", kind].settings


@pytest.mark.parametrize("name", UnlearningSuite.engines)
def test_smaller_batches_change_no_answer(tried, hub, tmp_path, name):
    """What is declared in `batch_sizes` may be halved when memory is short."""
    smaller = {field: getattr(CFG, field) // 2 for field in UnlearningSuite.batch_sizes}
    handle = nano.handles()[0]
    engine = make_engine(
        nano.context(tmp_path, hub, engine=name), replace(CFG, **smaller), [handle]
    )
    engine.prepare()
    assert smaller and engine.tried(handle).settings == tried[name, handle.label].settings


@pytest.mark.parametrize("kind", nano.KINDS)
def test_the_file_is_sae_benchs(tried, kind):
    changing = dict.fromkeys(("eval_id", "datetime_epoch_millis"))
    assert tried["fast", kind].raw | changing == tried["reference", kind].raw | changing


@pytest.mark.parametrize("kind", nano.KINDS)
def test_both_engines_give_our_grids(tried, engines, kind):
    assert tried["fast", kind].grids == tried["reference", kind].grids
    (handle,) = nano.handles(kind)
    ours, theirs = (engines[name].mean_difference(handle) for name in ("fast", "reference"))
    assert ours == theirs


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu"])
def test_the_comparison_sees_answers_that_change(tried, kind):
    lost = [1 - s.hazard(grid.everything) for s in tried["reference", kind].settings]
    assert max(lost) > 0.2
    assert min(lost) == 0


def test_the_degenerate_sae_has_nothing_to_clamp(tried):
    assert {s.n_features for s in tried["fast", "degenerate"].settings} == {0}
    assert tried["fast", "degenerate"].work["lm_block_tokens"] == 0


@pytest.mark.parametrize("kind", nano.KINDS)
def test_the_transfer_to_chat_is_measured_alike(engines, kind):
    (handle,) = nano.handles(kind)
    ours, theirs = (engines[name].chat(handle) for name in ("fast", "reference"))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_answers_without_words_are_sae_benchs(engines):
    texts = [q.text for some in engines["fast"].questions.values() for q in some]
    common = [word for word, _ in Counter(" ".join(texts).split()).most_common(60)]
    for words in (frozenset(common), frozenset(common[:4]), frozenset()):
        answers = engines["reference"].without_words(words)
        assert engines["fast"].without_words(words) == answers
    assert set(answers["wmdp-bio"].values()) == {1.0}


def test_the_suite_runs_on_either_engine(tmp_path, hub):
    ctx = nano.context(tmp_path, hub, engine="fast", cache_gb=0.1)
    dead = nano.handles("relu")[0]._replace(label="dead", info={"l0": 0.0})
    broken = nano.handles("topk")[0]._replace(label="broken")
    broken.sae.encode = None
    first, none, failed, last = UnlearningSuite(CFG).run(
        ctx, [*nano.handles("relu"), dead, broken, nano.handles("relu")[0]._replace(label="again")]
    )
    assert set(first.metrics) == {m.name for m in UnlearningSuite.metrics}
    assert none.invalid
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TypeError)
    assert last.metrics == first.metrics
    assert last.units == first.units


def test_the_work_of_answers_is_what_the_formula_says(engines):
    """An intervention costs the blocks between hook and last block, and one position after."""
    fast, (handle,) = engines["fast"], nano.handles("relu")
    x, n_blocks = fast.exam.x[2][:12], fast.asker.model.cfg.n_layers
    with torch.no_grad(), counting([fast.asker.model], [handle.sae]) as work:
        clamping = Clamping(
            fast.asker, handle.sae, x, list(range(40)), block=3, high=torch.ones(nano.D_SAE)
        )
        wanted = [
            w
            for multiplier in (10, 100)
            for w in clamping.interventions(list(range(0, 40, 2)), multiplier)
            if w.latents
        ]
        assert len(clamping.answers(wanted)) == len(wanted) > 0
    n_tokens = sum(len(x[w.prompt]) for w in wanted)
    assert work.lm_block_tokens == n_tokens * (n_blocks - 1 - 3) + len(wanted)
    assert work.unembed_tokens == len(wanted)
    assert work.sae_encoded_tokens == sum(map(len, x))


def test_reading_the_end_of_a_prompt_is_reading_the_whole(engines):
    asker, model = engines["fast"].asker, engines["fast"].asker.model
    texts = [q.prompt("human_aging") for q in engines["fast"].questions["human_aging"]]
    tokens = asker.tokens(texts)
    with torch.no_grad():
        for one in tokens[:4]:
            x = model(one[None], stop_at_layer=4)
            whole = model.blocks[4](x)[:, -1:]
            assert torch.allclose(last_position(model.blocks[4], x), whole, atol=1e-4, rtol=1e-5)
        letters = model.to_tokens(LETTERS, prepend_bos=False).flatten()
        logits = torch.stack([model(one[None])[0, -1, letters] for one in tokens])  # [n, 8]
    answers = logits.reshape(-1, 2, 4).amax(1).argmax(-1)
    assert asker.read(tokens) == answers.tolist()
