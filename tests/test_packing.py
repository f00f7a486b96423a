"""Documents as contexts: packed as SAELens packs them, with what each token is about."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tokenizer

from bench.packing import UNKNOWN, Context, Document, groups, is_text, pack, paraphrase_of
from bench.texts import Text

BOS = 2
DOCUMENTS = st.lists(st.lists(st.integers(3, 30), max_size=30), max_size=12)


@settings(deadline=None)
@given(documents=DOCUMENTS, size=st.integers(2, 16))
def test_packing_equals_saelens(documents, size):
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    theirs = concat_and_batch_sequences(
        (torch.tensor(ids) for ids in documents if ids),
        size,
        begin_batch_token_id=BOS,
        sequence_separator_token_id=BOS,
    )
    ours = pack([Document(ids) for ids in documents], BOS, size)
    assert [context.ids for context in ours] == [context.tolist() for context in theirs]


@settings(deadline=None)
@given(documents=DOCUMENTS, size=st.integers(2, 16))
def test_each_token_knows_its_document(documents, size):
    marked = [Document([10 * i + 3] * len(ids), str(i)) for i, ids in enumerate(documents)]
    for context in pack(marked, BOS, size):
        assert len(context.ids) == len(context.contents) == size
        for token, content in zip(*context):
            assert (token == BOS) == (content == "")
            assert token == BOS or token == 10 * int(content) + 3


def test_a_context_is_about_what_half_of_it_is_about():
    a, b = (paraphrase_of(Context([0] * 4, ["", c, c, "z"])) for c in "ab")
    assert a != b and min(a, b) >= 0
    assert paraphrase_of(Context([0] * 4, ["", "a", "a", ""])) == a
    assert paraphrase_of(Context([0] * 4, ["", "a", "z", "y"])) == UNKNOWN
    assert paraphrase_of(Context([0] * 4, [""] * 4)) == UNKNOWN


def test_only_text_tokens_count():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 2, 1, None

    kept = is_text(Tokenizer(), torch.tensor([[2, 5, 1, 0]]))
    assert kept.tolist() == [[False, True, False, True]]


def test_groups_hold_consecutive_contexts():
    texts = [Text("the city lies on the river", "same"), Text("apple banana")] * 40
    made = list(groups(iter(texts), tokenizer(), 6, n=8))
    assert [len(g.tokens) for g in made[:-1]] == [8] * (len(made) - 1)
    whole = torch.cat([g.tokens for g in made])
    assert torch.equal(whole, torch.cat([g.tokens for g in groups(texts, tokenizer(), 6, n=1)]))
    for group in made:
        assert group.is_text.shape == group.tokens.shape
        assert not group.is_text[:, 0].any()
        assert len(group.paraphrase_id) == len(group.tokens)
    assert (made[0].paraphrase_id >= 0).any() and (made[0].paraphrase_id == UNKNOWN).any()
