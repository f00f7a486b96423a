from bench.word_deletion import hazard_words, without_words


def test_words_are_ranked_by_forget_frequency_and_common_ones_spared():
    forget = ["the toxin of xeno", "the toxin spreads", "a toxin"]
    retain = ["the house and the bridge", "a spreads"]
    assert hazard_words(forget, retain, 0.15)[0] == "toxin"
    # "the" is 2 of 7 benign words, "spreads" 1 of 7
    assert "the" not in hazard_words(forget, retain, 0.15)
    assert "spreads" in hazard_words(forget, retain, 0.15)
    assert "spreads" not in hazard_words(forget, retain, 0.1)


def test_whole_words_are_left_out():
    assert without_words("toxin that toxins secrete:", {"toxin", "secrete"}) == "that toxins :"
