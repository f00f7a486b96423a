"""The activation stream of a tiny model: the right tokens, each once, in a reproducible order."""

import pytest
import torch
from tiny import D_MODEL, HOOK, pair

from bench import activations
from bench.activations import ActivationStream, is_text, pack
from bench.config import TrainConfig
from bench.errors import UserError
from bench.models import load_model

CONTEXT = 12


@pytest.fixture(scope="module")
def model():
    return load_model(pair()[0])


@pytest.fixture(scope="module")
def texts():
    """Short texts of single-token words, all different."""
    from bench.nano.tokenizer import alphabetic_words
    from bench.nano.world import make_world

    words = alphabetic_words(make_world())
    return [" ".join(words[i : i + 3 + i % 9]) for i in range(0, 1200, 4)]


def stream(model, texts, data_seed=0, **settings):
    known = {
        "d_sae": 32,
        "tokens": 600,
        "batch_size": 50,
        "context_size": CONTEXT,
        "heldout_tokens": 100,
    }
    return ActivationStream(
        model, HOOK, lambda: iter(texts), TrainConfig(**(known | settings)), data_seed=data_seed
    )


def in_order(x):
    """Rows in an order that depends on their values alone."""
    return x[torch.argsort(x[:, 0])]


def of_tokens(model, ids):
    """Activations of contexts through transformer_lens's own cache, text tokens only."""
    tokens = torch.tensor(ids)
    with torch.no_grad():
        cache = model.run_with_cache(tokens, names_filter=[HOOK])[1]
    special = torch.isin(tokens, torch.tensor([0, 1, 2]))  # nano's PAD, EOS and BOS
    return cache[HOOK][~special]


def ids_of(model, texts):
    return [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_packing_equals_saelens(model, texts):
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    documents, bos = ids_of(model, texts), model.tokenizer.bos_token_id
    theirs = concat_and_batch_sequences(
        (torch.tensor(ids) for ids in documents),
        CONTEXT,
        begin_batch_token_id=bos,
        sequence_separator_token_id=bos,
    )
    ours = list(pack(documents, bos, CONTEXT))
    assert len(ours) > 50
    assert ours == [context.tolist() for context in theirs]


def test_a_pass_gives_each_text_token_once_and_the_held_out_ones_never(model, texts):
    made = stream(model, texts)
    batches = [batch.x for batch in made]
    assert [x.shape for x in batches] == [(50, D_MODEL)] * made.n_steps
    bos, n_heldout = model.tokenizer.bos_token_id, made._n_heldout_texts
    before = of_tokens(model, list(pack(ids_of(model, texts[:n_heldout]), bos, CONTEXT)))
    behind = of_tokens(model, list(pack(ids_of(model, texts[n_heldout:]), bos, CONTEXT)))
    torch.testing.assert_close(made.heldout, before[:100], atol=1e-4, rtol=1e-4)
    expected = behind[:600] / made.scale
    torch.testing.assert_close(
        in_order(torch.cat(batches)), in_order(expected), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(torch.cat(batches), expected, atol=1e-2)  # shuffled


def test_a_small_pool_gives_the_same_tokens_mixed_beyond_a_batch(model, texts, monkeypatch):
    monkeypatch.setattr(activations, "CONTEXTS_PER_PASS", 4)
    whole = torch.cat([batch.x for batch in stream(model, texts)])
    monkeypatch.setattr(activations, "POOL_BYTES", 200 * D_MODEL * 4)
    made = stream(model, texts)
    pooled = [batch.x for batch in made]
    assert not made._fits and all(len(x) == 50 for x in pooled)
    torch.testing.assert_close(in_order(torch.cat(pooled)), in_order(whole), atol=1e-4, rtol=1e-4)
    again = [batch.x for batch in made]
    assert all(torch.equal(a, b) for a, b in zip(pooled, again, strict=True))


def test_the_order_follows_the_data_seed_alone(model, texts):
    made = stream(model, texts)
    first, second = ([batch.x for batch in made] for _ in range(2))
    other = [batch.x for batch in stream(model, texts, data_seed=1)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    torch.testing.assert_close(in_order(torch.cat(first)), in_order(torch.cat(other)))


def test_the_model_reads_each_context_once_however_often_the_stream_is_read(model, texts):
    passes = []
    made = stream(model, texts)
    handle = model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        assert made.scale > 0 and len(made.heldout) == 100
        for _ in range(3):
            assert sum(len(batch.x) for batch in made) == 600
    finally:
        handle.remove()
    # 600 tokens take about 61 contexts: two passes of 32; the held-out ones take one
    assert len(passes) == 3


def test_activations_are_scaled_to_unit_mean_squared_norm(model, texts):
    made = stream(model, texts)
    assert made.sample.pow(2).sum(-1).mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(made.sample * made.scale, made.raw_sample)


def test_only_text_tokens_count():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 2, 1, None

    kept = is_text(Tokenizer(), torch.tensor([[2, 5, 1, 0]]))
    assert kept.tolist() == [[False, True, False, True]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 10**6, "batch_size": 50}, "train.tokens=1000000.* of 1000000 tokens"),
        ({"heldout_tokens": 10**6}, "heldout_tokens=1000000"),
        ({"context_size": 1000}, "train.context_size=1000: exceeds the 512 of model 'nano'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_both_numbers(model, texts, settings, message):
    with pytest.raises(UserError, match=message):
        next(iter(stream(model, texts, **settings)))


def test_an_unknown_hook_is_refused(model, texts):
    config = TrainConfig(d_sae=32, tokens=600, context_size=CONTEXT)
    with pytest.raises(UserError, match="'blocks.1.hook_none': model 'nano' has no such hook"):
        ActivationStream(model, "blocks.1.hook_none", lambda: texts, config, data_seed=0)
