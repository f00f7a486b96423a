"""How much work each suite is, by closed formulas: for models too large to count it on.

The tests hold every formula against what is counted (bench.counters) on small models; the table
for Gemma-2-2B in docs/performance.md comes from the same formulas.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

from bench.counters import Work
from bench.suite import Engine

N_LETTERS = 26
N_ORDERS = 24
"""Of four choices."""
FULL_PROBE_EPOCHS, FULL_PROBE_BATCH = 100, 250
"""Of sparse probing's probe on all columns, which may stop earlier."""


class Depth(NamedTuple):
    """Where in a language model the SAEs are."""

    n_layers: int
    below: int
    """Blocks that a token goes through up to the hook."""

    @property
    def above(self) -> int:
        return self.n_layers - self.below


class Cost(NamedTuple):
    """The work of one suite."""

    setup: Work
    """Once per model and data: kept on disk afterwards."""
    shared: Work
    """Once per run, for all SAEs."""
    own: Work
    """For every SAE."""

    def warm(self, n_saes: int) -> Work:
        """A run on N SAEs after the set-up."""
        return self.shared + times(self.own, n_saes)


class CoreTokens(NamedTuple):
    """Tokens that core reads."""

    losses: int
    """For cross-entropy and KL."""
    variance: int
    """For reconstruction and sparsity."""
    context: int
    """In one context."""


class ProbingTexts(NamedTuple):
    """What sparse probing reads."""

    n_classes: int
    """Over all data sets."""
    texts_per_class: int
    """Training and test."""
    context: int
    """Tokens per text, padding included."""
    n_k: int
    """How many values of k."""
    train_per_probe: int
    """Training rows of one probe."""
    encoded: int | None = None
    """Tokens that ours encodes; None = all: it leaves out padding at the end."""

    @property
    def tokens(self) -> int:
        return self.n_classes * self.texts_per_class * self.context


class Words(NamedTuple):
    """What absorption reads."""

    train: int
    test: int
    found: int
    """Test words whose letter the probe finds."""
    per_prompt: int
    """Tokens of the prompt around one word."""
    max_k: int
    n_epochs: int
    batch: int
    """Of the L1 probe."""
    is_encoded_once: bool
    """sae_bench's precalc_k_sparse_probe_sae_acts."""


class Asked(NamedTuple):
    """What unlearning reads. Tokens of questions are those of whole batches."""

    corpora: int
    """Tokens of both corpora."""
    questions: int
    """That the model answers reliably."""
    tokens: int
    """Of their prompts."""
    all_questions: int
    all_tokens: int
    """Of all questions in one order, with the question or without: taken as equally long."""
    settings: int
    """Thresholds times numbers of latents times multipliers."""
    share: float
    """Of prompts and settings, those in which a clamped latent fires and that differ."""


def core(depth: Depth, tokens: CoreTokens, engine: Engine) -> Cost:
    """Ours: one whole pass for all, one from the hook on per SAE, one context of zeros."""
    losses, variance = tokens.losses, tokens.variance
    used = {
        "sae_encoded_tokens": losses + variance,
        "sae_decoded_tokens": losses + variance,
    }
    if engine == "reference":
        blocks = 3 * losses * depth.n_layers + variance * depth.below
        return Cost(Work(), Work(), Work(blocks, 3 * losses, **used))
    shared = Work(
        losses * depth.n_layers + variance * depth.below + tokens.context * depth.above,
        losses + tokens.context,
    )
    return Cost(Work(), shared, Work(losses * depth.above, losses, **used))


def sparse_probing(depth: Depth, texts: ProbingTexts, engine: Engine) -> Cost:
    """The same but for reading the activations from disk, once or for every SAE, and padding."""
    fits = texts.n_classes * texts.n_k
    steps = FULL_PROBE_EPOCHS * math.ceil(texts.train_per_probe / FULL_PROBE_BATCH)
    probes = {"probe_fits": fits, "probe_steps": texts.n_classes * steps}
    encoded = texts.tokens
    if engine == "fast" and texts.encoded is not None:
        encoded = texts.encoded
    return Cost(
        Work(texts.tokens * depth.below, **probes),
        Work(),
        Work(sae_encoded_tokens=encoded, **probes),
    )


def absorption(depth: Depth, words: Words, engine: Engine) -> Cost:
    """Ours: passes end at the hook, new examples are read once for all, words encoded once.

    The steps of the letter probe, a part of the set-up, are left out.
    """
    fits = N_LETTERS * words.max_k
    probes = {
        "probe_fits": fits,
        "probe_steps": words.n_epochs * math.ceil(words.train / words.batch),
    }
    first, again = ((words.train + words.test) * words.per_prompt, words.found * words.per_prompt)
    if engine == "reference":
        times_encoded = 1 if words.is_encoded_once else words.n_epochs + fits
        encoded = times_encoded * words.train + words.test + words.found
        own = Work(again * depth.n_layers, again, sae_encoded_tokens=encoded, **probes)
        return Cost(Work(first * depth.n_layers, first), Work(), own)
    encoded = words.train + words.test + words.found
    return Cost(
        Work(first * depth.below),
        Work(again * depth.below),
        Work(sae_encoded_tokens=encoded, **probes),
    )


def unlearning(depth: Depth, asked: Asked, engine: Engine) -> Cost:
    """sae_bench's settings and a run without; ours answers where something changes.

    Ours reads the answer at one position of the last block. Of its set-up this is the most: a
    question is dropped at its first wrong answer. Of its decoding too: tokens on which nothing is
    clamped are not decoded.
    """
    orders = N_ORDERS * asked.all_tokens
    if engine == "reference":
        runs = asked.settings + 1
        own = Work(
            asked.corpora * depth.below + runs * asked.tokens * depth.n_layers,
            runs * asked.tokens,
            sae_encoded_tokens=asked.corpora + asked.settings * asked.tokens,
            sae_decoded_tokens=2 * asked.settings * asked.tokens,
        )
        return Cost(Work(2 * orders * depth.n_layers, 2 * orders), Work(), own)
    answers = round(asked.share * asked.settings * asked.questions)
    tokens = round(asked.share * asked.settings * asked.tokens)
    return Cost(
        Work(
            orders * (depth.n_layers - 1) + N_ORDERS * asked.all_questions,
            N_ORDERS * asked.all_questions,
        ),
        Work((asked.corpora + asked.tokens) * depth.below),
        Work(
            tokens * (depth.above - 1) + answers,
            answers,
            sae_encoded_tokens=asked.corpora + asked.tokens,
            sae_decoded_tokens=asked.tokens + tokens,
        ),
    )


def times(work: Work, n: int) -> Work:
    """The work of doing it n times."""
    return Work(**{name: n * count for name, count in asdict(work).items()})


def multiplications(work: Work, *, block: int, unembed: int, sae: int) -> int:
    """Of the language model and the SAEs, given those of one token."""
    coded = work.sae_encoded_tokens + work.sae_decoded_tokens
    return work.lm_block_tokens * block + work.unembed_tokens * unembed + coded * sae


GEMMA_2_2B = Depth(n_layers=26, below=13)
"""blocks.12.hook_resid_post, where SAEBench's SAEs are."""


def gemma_costs(engine: Engine) -> Mapping[str, Cost]:
    """Suite -> its cost on Gemma-2-2B with sae_bench's defaults.

    Words, questions and lengths of prompts are not known without the model and data: 1e5 and
    2.5e4 words of 115 tokens' examples; 700 of 1,998 questions of 229 tokens; with 112 tokens
    for all in the set-up, it agrees with the 33 minutes of sae_bench's README.
    """
    batch = 16 * 128
    return {
        "core": core(GEMMA_2_2B, CoreTokens(200 * batch, 2000 * batch, 128), engine),
        "sparse_probing": sparse_probing(GEMMA_2_2B, ProbingTexts(36, 2500, 128, 3, 4000), engine),
        "absorption": absorption(
            GEMMA_2_2B, Words(100_000, 25_000, 24_000, 115, 10, 50, 4096, False), engine
        ),
        "unlearning": unlearning(
            GEMMA_2_2B,
            Asked(
                corpora=(1024 + 270) * 1024,
                questions=700,
                tokens=160_000,
                all_questions=1_998,
                all_tokens=1_998 * 112,
                settings=16,
                share=1.0,
            ),
            engine,
        ),
    }
