"""Make the nano pair from seed: tokenizer, base model, instruct model, model card."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.nano import card
from bench.nano.curriculum import curriculum
from bench.nano.lessons import LessonMaker
from bench.nano.letters import probed_letters
from bench.nano.tokenizer import alphabetic_words, make_tokenizer
from bench.nano.world import World, make_world

if TYPE_CHECKING:
    from transformers import Gemma2ForCausalLM, PreTrainedTokenizerFast

WEIGHTS = Path(__file__).parent / "weights"
MODEL_SEED = 0
MINI_SCALE = 0.002
MINI_QUESTIONS = 2
HELD_OUT_ROWS, HELD_OUT_LENGTH, HELD_OUT_SEED = 64, 128, 999
HOOK_LAYER = 2
"""Layer of the letter probes in the card: the one that configs/nano.yaml trains SAEs on."""
Report = Callable[[str, int, int, float], None]


def build(out: Path, *, mini: bool = False, report: Report | None = None) -> dict[str, Any]:
    """Build both models below `out` (`base/`, `instruct/`, `README.md`); returns the card's facts.

    `mini` runs every step on a few batches: it shows that the build works, not a usable model.
    """
    report = report or (lambda name, step, steps, loss: None)
    world = make_world()
    tokenizer = make_tokenizer(world)
    phases = curriculum(MINI_SCALE if mini else 1.0)
    started = time.monotonic()
    facts: dict[str, Any] = {
        "mini": mini,
        "seed": MODEL_SEED,
        "cores": os.cpu_count(),
        "words": len(alphabetic_words(world)),
        "hook_layer": HOOK_LAYER,
    }
    limit = MINI_QUESTIONS if mini else None
    model = _train(world, tokenizer, phases.base, None, report)
    facts["base"] = _save_and_examine(model, tokenizer, world, out / "base", limit)
    facts["base"]["build_s"] = round(time.monotonic() - started)
    model = _train(world, tokenizer, phases.instruct, model, report)
    facts["instruct"] = _save_and_examine(model, tokenizer, world, out / "instruct", limit)
    facts["build_s"] = round(time.monotonic() - started)
    facts["letters"] = probed_letters(out / "base", HOOK_LAYER)
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card.render(facts), encoding="utf-8")
    return facts


def _train(
    world: World,
    tokenizer: "PreTrainedTokenizerFast",
    phases: tuple[Any, ...],
    model: "Gemma2ForCausalLM | None",
    report: Report,
) -> "Gemma2ForCausalLM":
    """Run `phases` on `model`, or on a new one; every phase has lessons of its own seed."""
    from bench.nano.architecture import new_model
    from bench.nano.training import train_phase

    model = model or new_model(tokenizer, MODEL_SEED)
    words = alphabetic_words(world)
    for i, phase in enumerate(phases):
        lessons = LessonMaker(world, tokenizer, words, seed=f"{MODEL_SEED}-{phase.name}-{i}")
        train_phase(model, lessons, phase, report)
    return model


def _save_and_examine(
    model: "Gemma2ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    world: World,
    folder: Path,
    limit: int | None,
) -> dict[str, Any]:
    """Save a model with its tokenizer and measure what it knows."""
    from bench.nano import exam

    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    words = alphabetic_words(world)
    held_out = LessonMaker(world, tokenizer, words, seed=HELD_OUT_SEED)
    rows = held_out.rows(HELD_OUT_ROWS, HELD_OUT_LENGTH, [(1.0, held_out.general)])
    scores = exam.quiz_scores(model, tokenizer, world, limit)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": exam.text_loss(model, rows.ids),
        "recall": exam.recall(model, tokenizer, world),
        "spelling": exam.spelling_accuracy(model, tokenizer, words),
        "quiz": {domain: score._asdict() for domain, score in scores.items()},
    }
