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
    base = _train(world, tokenizer, phases.base, None, report)
    _save(base, tokenizer, out / "base")
    instruct = _train(world, tokenizer, phases.instruct, base, report)
    _save(instruct, tokenizer, out / "instruct")
    build_s = round(time.monotonic() - started)
    return examine(out, build_s=build_s, limit=MINI_QUESTIONS if mini else None)


def examine(out: Path, *, build_s: int, limit: int | None = None) -> dict[str, Any]:
    """Measure the pair below `out` and write `facts.json` and the model card `README.md`.

    `limit` asks only so many questions of each subject.
    """
    world = make_world()
    facts: dict[str, Any] = {
        "seed": MODEL_SEED,
        "cores": os.cpu_count(),
        "build_s": build_s,
        "words": len(alphabetic_words(world)),
        "hook_layer": HOOK_LAYER,
        "base": _knows(world, out / "base", limit),
        "instruct": _knows(world, out / "instruct", limit),
        "letters": probed_letters(out / "base", HOOK_LAYER),
    }
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


def _save(model: "Gemma2ForCausalLM", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _knows(world: World, folder: Path, limit: int | None) -> dict[str, Any]:
    """What the checkpoint in `folder` knows, with the tokenizer that is saved beside it."""
    from transformers import AutoTokenizer, Gemma2ForCausalLM

    from bench.nano import exam

    model = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
