"""The activation stream of a tiny model: the right tokens, each once per view, the same always."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import D_MODEL, HOOK, data, pair

from bench import activations
from bench.activation_cache import ActivationCache
from bench.activations import ActivationStream, open_stream
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.datasets import LocalHub
from bench.errors import UserError
from bench.models import load_model
from bench.packing import UNKNOWN, groups
from bench.texts import Text

CONTEXT = 12
SMALL = {"tokens": 600, "batch_size": 50, "buffer_tokens": 200}
"""Settings with which the tokens of a pass do not fit into memory."""


@pytest.fixture(scope="module")
def model():
    return load_model(pair()[0])


@pytest.fixture(scope="module")
def texts():
    """Short texts of single-token words, all different; some are about the same as the next."""
    from bench.nano.tokenizer import alphabetic_words
    from bench.nano.world import make_world

    words = alphabetic_words(make_world())
    return [
        Text(" ".join(words[i : i + 3 + i % 9]), f"c{i // 12}" if i % 12 > 3 else "")
        for i in range(0, 1200, 4)
    ]


@pytest.fixture(autouse=True)
def small_passes(monkeypatch):
    monkeypatch.setattr(activations, "contexts_per_pass", lambda size: 4)


def stream(model, texts, data_seed=0, more=None, **settings):
    known = {
        "d_sae": 32,
        "tokens": 600,
        "batch_size": 50,
        "context_size": CONTEXT,
        "heldout_tokens": 100,
    }
    config = TrainConfig(**(known | settings))
    return ActivationStream(
        model, HOOK, lambda: iter(texts), config, data_seed=data_seed, **(more or {})
    )


def with_sequences(model, texts, **settings):
    return stream(model, texts, more={"needs_sequences": True}, **settings)


def in_order(x):
    """Rows in an order that depends on their values alone."""
    return x[torch.argsort(x[:, 0])]


def of_tokens(model, texts):
    """Activations of text tokens through transformer_lens's own cache, in reading order."""
    (group,) = groups(texts, model.tokenizer, CONTEXT, 10**6)
    with torch.no_grad():
        cache = model.run_with_cache(group.tokens, names_filter=[HOOK])[1]
    special = torch.isin(group.tokens, torch.tensor([0, 1, 2]))  # nano's PAD, EOS and BOS
    return cache[HOOK][~special]


def assert_equal(one, other):
    """Batches of two streams, bit for bit in every field of both views."""
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x is None and y is None) or torch.equal(x, y)


def test_a_pass_gives_each_text_token_once_and_the_held_out_ones_never(model, texts):
    made = stream(model, texts)
    batches = [batch.x for batch in made]
    assert [x.shape for x in batches] == [(50, D_MODEL)] * made.n_steps
    n_heldout = made._first_documents.n_texts
    before = of_tokens(model, texts[:n_heldout])
    behind = of_tokens(model, texts[n_heldout:])
    torch.testing.assert_close(made.heldout, before[:100], atol=1e-4, rtol=1e-4)
    expected = behind[:600] / made.scale
    torch.testing.assert_close(
        in_order(torch.cat(batches)), in_order(expected), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(torch.cat(batches), expected, atol=1e-2)  # shuffled


def test_little_memory_gives_the_same_tokens_mixed_beyond_a_batch(model, texts):
    whole = torch.cat([batch.x for batch in stream(model, texts)])
    made = stream(model, texts, **SMALL)
    mixed = [batch.x for batch in made]
    assert not made.is_in_memory and all(len(x) == 50 for x in mixed)
    assert torch.equal(in_order(torch.cat(mixed)), in_order(whole))
    rows = of_tokens(model, texts[made._first_documents.n_texts :])[:600] / made.scale
    nearest = torch.cdist(mixed[3], rows).argmin(1)
    assert nearest.max() - nearest.min() > 100  # from more than two batches
    assert_equal(made, made)


def test_memory_holds_no_more_than_the_buffer_and_one_pass_of_the_model(model, texts):
    made = stream(model, texts, **SMALL)
    window = made._opened(0, 200)
    while window.read_one():
        pass
    assert window._rows is not None and len(window._rows) == 200 + 4 * CONTEXT


def test_the_order_follows_the_data_seed_alone(model, texts):
    made = stream(model, texts)
    other = [batch.x for batch in stream(model, texts, data_seed=1)]
    first = [batch.x for batch in made]
    assert_equal(made, made)
    assert not torch.equal(first[0], other[0])
    assert torch.equal(in_order(torch.cat(first)), in_order(torch.cat(other)))


@pytest.mark.parametrize("memory", [{}, SMALL])
@pytest.mark.parametrize("sequences", [False, True])
def test_a_later_start_gives_the_batches_of_a_whole_pass(model, texts, memory, sequences):
    made = stream(model, texts, more={"needs_sequences": sequences}, **memory)
    whole = list(made)
    for start in (0, 1, 5, 11, 12):
        again = stream(model, texts, more={"needs_sequences": sequences}, **memory)
        assert_equal(again.batches(start), whole[start:])


def test_a_later_start_does_not_read_what_is_behind_it(model, texts):
    made = stream(model, texts, **SMALL)
    assert made.scale
    with passes_of(model) as whole:
        assert len(list(made.batches())) == 12
    with passes_of(model) as late:
        assert len(list(made.batches(10))) == 2
    assert 0 < len(late) < len(whole) / 2


class passes_of:
    """Counts the passes of a model, each with the number of its contexts."""

    def __init__(self, model):
        self._model = model

    def __enter__(self):
        passes: list[int] = []
        self._handle = self._model.blocks[0].register_forward_hook(
            lambda module, args, out: passes.append(len(out))
        )
        return passes

    def __exit__(self, *error):
        self._handle.remove()


def test_any_number_of_saes_costs_one_pass_of_the_model(model, texts):
    from training import make

    from bench.lockstep import train_in_loop
    from bench.trainee import Trainee
    from variants.relu import ReLU
    from variants.topk import TopK

    (held_out,) = groups(texts[:32], model.tokenizer, CONTEXT, 10**6)
    n_heldout = int((held_out.is_text.sum(1).cumsum(0) < 100).sum()) + 1
    (training,) = groups(texts[32:], model.tokenizer, CONTEXT, 10**6)
    n_training = int((training.is_text.sum(1).cumsum(0) < 600).sum()) + 1
    expected = -(-n_heldout // 4) + -(-n_training // 4)
    for n in (1, 5):
        made = stream(model, texts)
        with passes_of(model) as passes:
            saes = [make((TopK, ReLU)[i % 2], seed=i, d_in=D_MODEL, d_sae=48) for i in range(n)]
            group = [Trainee(str(i), s, made.config, made.n_steps) for i, s in enumerate(saes)]
            train_in_loop(group, made)
            assert len(made.heldout) == 100
        assert all((t.outcome.n_steps, t.outcome.stop_reason) == (12, None) for t in group)
        assert len(passes) == expected


def test_activations_are_scaled_to_unit_mean_squared_norm(model, texts):
    for memory in ({}, SMALL):
        made = stream(model, texts, **memory)
        assert made.sample.pow(2).sum(-1).mean().item() == pytest.approx(1, rel=1e-5)
        torch.testing.assert_close(made.sample * made.scale, made.raw_sample)
        everything = torch.cat([batch.x for batch in made])
        assert torch.equal(in_order(made.sample), in_order(everything))


# the two views


@pytest.mark.parametrize("memory", [{}, SMALL, {"tokens": 550, "buffer_tokens": 300}])
def test_both_views_hold_each_token_exactly_once(model, texts, memory):
    made = with_sequences(model, texts, **memory)
    shuffled, in_contexts = [], []
    for batch in made:
        shuffled.append(batch.x)
        in_contexts.append(batch.contexts[batch.mask])
    x = torch.cat(shuffled)
    assert torch.equal(in_order(x), in_order(torch.cat(in_contexts)))
    assert len(x) == made.n_tokens


@settings(deadline=None, max_examples=15)
@given(
    context=st.integers(4, 20),
    batch=st.integers(40, 90),
    n_steps=st.integers(1, 9),
    buffer=st.integers(1, 700),
)
def test_views_agree_for_any_sizes(model, texts, context, batch, n_steps, buffer):
    made = with_sequences(
        model,
        texts,
        context_size=context,
        batch_size=batch,
        tokens=batch * n_steps + batch // 2,
        buffer_tokens=buffer,
    )
    batches = list(made)
    assert len(batches) == n_steps
    assert all(len(b.contexts) >= 2 for b in batches)
    one = torch.cat([b.x for b in batches])
    other = torch.cat([b.contexts[b.mask] for b in batches])
    assert torch.equal(in_order(one), in_order(other))


@pytest.mark.parametrize("memory", [{}, SMALL])
def test_whole_contexts_are_in_reading_order_with_their_ids(model, texts, memory):
    made = with_sequences(model, texts, **memory)
    (group,) = groups(texts[made._first_documents.n_texts :], model.tokenizer, CONTEXT, 10**6)
    seen = []
    for batch in made:
        b = len(batch.contexts)
        assert batch.contexts.shape == (b, CONTEXT, D_MODEL)
        assert torch.equal(batch.token_ids, group.tokens[batch.context_id])
        assert torch.equal(batch.paraphrase_id, group.paraphrase_id[batch.context_id])
        assert torch.equal(batch.positions, torch.arange(CONTEXT).expand(b, -1))
        # both views are scaled alike; special tokens are zeros, their norms would be huge
        expected = activations.activations(model, HOOK, batch.token_ids) / made.scale
        torch.testing.assert_close(
            batch.contexts, expected * batch.mask[..., None], atol=1e-4, rtol=1e-4
        )
        is_last = batch.context_id == seen_last(group, made.n_tokens)
        assert torch.equal(batch.mask[~is_last], group.is_text[batch.context_id[~is_last]])
        seen += batch.context_id.tolist()
    assert sorted(seen) == list(range(seen_last(group, made.n_tokens) + 1))
    assert seen != sorted(seen)


def seen_last(group, n_tokens):
    """Index of the context in which a pass ends."""
    return int((group.is_text.sum(1).cumsum(0) < n_tokens).sum())


def test_steps_have_as_many_contexts_as_hold_their_tokens(model, texts):
    made = with_sequences(model, [Text(t.text) for t in texts], tokens=1000)
    sizes = [len(batch.contexts) for batch in made]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 50 // (CONTEXT - 1)


def test_contexts_of_one_content_come_in_the_same_step(model, texts):
    made = with_sequences(model, texts, context_size=6)
    n_pairs = 0
    steps = [batch.paraphrase_id.tolist() for batch in made]
    for i, ids in enumerate(steps):
        known = {p for p in ids if p != UNKNOWN}
        n_pairs += sum(ids.count(p) > 1 for p in known)
        others = [p for j, other in enumerate(steps) if j != i for p in other]
        assert not known & set(others)
    assert n_pairs > 5


@pytest.mark.parametrize("memory", [{}, SMALL])
def test_asking_for_contexts_changes_no_bit_of_the_shuffled_tokens(model, texts, memory):
    plain, both = stream(model, texts, **memory), with_sequences(model, texts, **memory)
    for one, other in zip(plain, both, strict=True):
        assert torch.equal(one.x, other.x)
        assert one.contexts is None and other.contexts is not None
    assert plain.scale == both.scale and torch.equal(plain.heldout, both.heldout)


def test_steps_too_small_for_whole_contexts_are_refused(model, texts):
    with pytest.raises(UserError, match="at least 22 with train.context_size=12, not 21"):
        with_sequences(model, texts, batch_size=21)
    assert with_sequences(model, texts, batch_size=22).n_steps == 27


# prefetch and disk cache


@pytest.mark.parametrize("memory", [{}, SMALL])
def test_batches_made_in_the_background_are_the_same(model, texts, memory):
    wanted = {"needs_sequences": True}
    plain = stream(model, texts, more=wanted, **memory)
    ahead = stream(model, texts, more={**wanted, "n_ahead": 3}, **memory)
    assert_equal(plain, ahead)
    assert_equal(plain.batches(7), ahead.batches(7))


@pytest.mark.parametrize("memory", [{}, SMALL])
def test_a_later_run_reads_activations_from_disk_and_gets_the_same_batches(
    model, texts, memory, tmp_path
):
    def cached():
        return {"cache": ActivationCache(tmp_path, 10**8, "tiny")}

    plain = list(stream(model, texts, **memory))
    assert_equal(stream(model, texts, more=cached(), **memory), plain)
    with passes_of(model) as passes:
        assert_equal(stream(model, texts, more=cached(), **memory), plain)
    assert passes == []
    damaged = sorted(tmp_path.iterdir())[3]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with passes_of(model) as passes:
        assert_equal(stream(model, texts, more=cached(), **memory), plain)
    assert len(passes) == 1


def test_a_small_budget_keeps_a_part(model, texts, tmp_path):
    budget = 20_000
    for _ in range(2):
        with passes_of(model) as passes:
            cache = ActivationCache(tmp_path, budget, "tiny")
            assert len(list(stream(model, texts, more={"cache": cache}))) == 12
    assert 0 < sum(p.stat().st_size for p in tmp_path.iterdir()) <= budget
    with passes_of(model) as whole:
        list(stream(model, texts))
    assert 0 < len(passes) < len(whole)


# sinks


class Sinking:
    """A hook that multiplies every `n`-th token's activations, as attention sinks have them."""

    def __init__(self, model, n=7, factor=50.0):
        self._model, self._n, self._factor = model, n, factor

    def __enter__(self):
        def enlarge(value, hook):
            at = torch.arange(value.shape[1]) % self._n == self._n - 1
            return torch.where(at[None, :, None], value * self._factor, value)

        self._model.add_perma_hook(HOOK, enlarge)
        return self

    def __exit__(self, *error):
        self._model.reset_hooks(including_permanent=True)


@pytest.mark.parametrize("memory", [{}, SMALL])
def test_sinks_are_left_out_of_both_views_and_the_held_out_split(model, texts, memory):
    more = {"needs_sequences": True}
    with Sinking(model):
        kept = stream(model, texts, more=more, sink_norm=10.0, **memory)
        batches, everything = list(kept), list(stream(model, texts, more=more, **memory))
        assert_equal(kept.batches(4), batches[4:])
        heldout = kept.heldout
    assert len(batches) == len(everything) == 12
    x = torch.cat([b.x for b in batches])
    n_sinks = sum(int(b.mask[:, 6].sum()) for b in everything)
    assert len(x) == 600 - n_sinks
    assert kept.max_norm is not None and 0 < len(heldout) < 100
    assert heldout.norm(dim=1).max() <= kept.max_norm
    assert (x * kept.scale).norm(dim=1).max() <= kept.max_norm * (1 + 1e-5)
    in_contexts = torch.cat([b.contexts[b.mask] for b in batches])
    assert torch.equal(in_order(x), in_order(in_contexts))
    assert not any(b.mask[:, 6].any() or b.contexts[:, 6].any() for b in batches)
    assert kept.sink_fraction == pytest.approx(n_sinks / 600)
    assert kept.sample.pow(2).sum(-1).mean().item() == pytest.approx(1, rel=1e-5)


def test_without_sinks_nothing_is_left_out(model, texts):
    plain, strict = stream(model, texts), stream(model, texts, sink_norm=1e6)
    assert_equal(plain, strict)
    assert plain.sink_fraction == strict.sink_fraction == 0


# bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 10**6}, "train.tokens=1000000.* of 1000000 tokens"),
        ({"tokens": 10**6, "buffer_tokens": 10**7}, "train.tokens=1000000.* of 1000000 tokens"),
        ({"heldout_tokens": 10**6}, "heldout_tokens=1000000"),
        ({"context_size": 1000}, "train.context_size=1000: exceeds the 512 of model 'nano'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_both_numbers(model, texts, settings, message):
    with pytest.raises(UserError, match=message):
        next(iter(stream(model, texts, **settings)))


@pytest.mark.parametrize("memory", [{}, SMALL])
def test_an_empty_text_is_refused(model, memory):
    with pytest.raises(UserError, match="ends after 0 of 100 tokens"):
        stream(model, [], **memory).sample  # noqa: B018


def test_a_short_text_is_refused_before_training_though_it_is_not_read_before(model, texts):
    more = {"n_text_bytes": 10_000}
    settings = {**SMALL, "tokens": 10_000}
    with (
        passes_of(model) as passes,
        pytest.raises(UserError, match=r"ends after \d+ of 10000 tokens"),
    ):
        stream(model, texts, more=more, **settings).sample  # noqa: B018
    assert len(passes) < 5  # the held-out tokens


def test_an_unknown_hook_is_refused(model, texts):
    config = TrainConfig(d_sae=32, tokens=600, context_size=CONTEXT)
    with pytest.raises(UserError, match="'blocks.1.hook_none': model 'nano' has no such hook"):
        ActivationStream(model, "blocks.1.hook_none", lambda: texts, config, data_seed=0)


def test_a_hook_that_is_no_row_of_numbers_is_refused(model, texts):
    with pytest.raises(UserError, match="hook_z': gives 4 axes"):
        activations.activations(model, "blocks.1.attn.hook_z", torch.tensor([[2, 50]]))


# from a config


def config(**settings):
    train = {"d_sae": 32, "tokens": 1000, "batch_size": 100, "context_size": 32}
    return RunConfig(
        name="test",
        model="nano",
        hook_name=HOOK,
        train=TrainConfig(**(train | {"heldout_tokens": 200} | settings.pop("train", {}))),
        variants=(VariantConfig("topk"),),
        **settings,
    )


def opened(tmp_path, **settings):
    return open_stream(config(**settings), pair()[0], LocalHub(data()), tmp_path)


def test_a_run_reads_its_data_set_and_forgets_the_layers_behind_the_hook(tmp_path):
    made = opened(tmp_path, d_in=D_MODEL)
    model = made._reader._model
    assert len(model.blocks) == 2
    assert not any("unembed" in name for name, _ in model.named_parameters())
    texts = [
        json.loads(line) for line in LocalHub(data()).file("Skylion007/openwebtext", "train").open()
    ]
    whole = load_model(pair()[0])
    (group,) = groups((Text(r["text"]) for r in texts), whole.tokenizer, 32, 10**6)
    expected = activations.activations(whole, HOOK, group.tokens)[group.is_text]
    torch.testing.assert_close(made.heldout, expected[:200], atol=1e-4, rtol=1e-4)
    assert list(tmp_path.iterdir()) == []  # nothing is kept unless asked for


def test_a_run_may_read_a_local_file(tmp_path):
    path = tmp_path / "mine.txt"
    rows = LocalHub(data()).load_dataset("Skylion007/openwebtext", split="train")
    path.write_text("\n\n".join(" ".join(row["text"].split()) for row in rows))
    assert len(list(opened(tmp_path, train={"dataset": str(path)}))) == 10
    path.write_text("apple\n")
    with pytest.raises(UserError, match="mine.txt ends after 0 of 200 tokens"):
        opened(tmp_path, train={"dataset": str(path)})


def test_a_run_with_a_disk_budget_keeps_activations_beside_the_runs(tmp_path):
    first = list(opened(tmp_path, activation_cache_gb=0.1))
    assert list((tmp_path / "activations").iterdir())
    again = opened(tmp_path, activation_cache_gb=0.1)
    with passes_of(again._reader._model) as passes:
        assert_equal(again, first)
    assert passes == []


def test_another_width_than_the_models_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"d_in=99: {HOOK} of model 'nano' is {D_MODEL} wide"):
        opened(tmp_path, d_in=99)
