"""Made-up, pronounceable words: names that no real text contains."""

import random

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
ENDINGS = "nrxtlskm"


def made_up_word(rng: random.Random, first: str, taken: set[str]) -> str:
    """A new word of 5 to 9 letters that starts with `first`; it is added to `taken`."""
    while True:
        word = first + (rng.choice(VOWELS) if first in CONSONANTS else "")
        word += "".join(
            rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3))
        )
        if rng.random() < 0.6:
            word += rng.choice(ENDINGS)
        if word not in taken:
            taken.add(word)
            return word


def balanced_words(rng: random.Random, count: int, taken: set[str]) -> list[str]:
    """`count` new words whose first letters go round the alphabet."""
    return [made_up_word(rng, LETTERS[i % 26], taken) for i in range(count)]
