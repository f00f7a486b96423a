"""The word-deletion control of unlearning: what does leaving out the hazard's words achieve?

An SAE that is worth its cost has to beat, or to spare more than, a plain list of words.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable

WORD = re.compile(r"[A-Za-z]+")


def hazard_words(forget: Iterable[str], retain: Iterable[str], threshold: float) -> list[str]:
    """Words of the forget texts by falling frequency, as sae_bench ranks latents.

    Left out are words that are at least the share `threshold` of the words of the retain texts.
    """
    hazard, benign = _counts(forget), _counts(retain)
    n = max(sum(benign.values()), 1)
    return [word for word, _ in hazard.most_common() if benign[word] / n < threshold]


def without_words(text: str, words: Collection[str]) -> str:
    """`text` with each of `words` left out, and the spaces that this leaves."""
    kept = WORD.sub(lambda match: "" if match.group() in words else match.group(), text)
    return re.sub(r" {2,}", " ", kept).strip()


def _counts(texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in texts for word in WORD.findall(text))
