"""The training loop of the nano models: next-token prediction on packed lessons, phase by phase."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.nano.documents import Document
from bench.nano.lessons import IGNORED, LessonMaker, Lessons

if TYPE_CHECKING:
    from transformers import Gemma2ForCausalLM

Diet = Sequence[tuple[float, Callable[[], tuple[Document, ...]]]]
WARMUP_STEPS = 50
MIN_LR_FACTOR = 0.01
RECALL_LAYER, MARK_LAYER = 2, 3
STEPS_PER_DRAW = 50
"""Lessons are drawn for this many steps at a time and shuffled among one another."""


class Phase(NamedTuple):
    """A stretch of training with one schedule of its own."""

    name: str
    steps: int
    rows: int
    """Sequences per step."""
    length: int
    """Tokens per sequence."""
    diet: Callable[[LessonMaker, float], Diet]
    """Progress of the phase in [0, 1] -> what is read."""
    matrix_lr: float
    """Muon's learning rate, for the weight matrices."""
    vector_lr: float
    """AdamW's learning rate, for embeddings and norms."""
    decay: float
    """Last share of the phase over which both fall linearly."""
    answer_weight: float = 8.0
    """Weight of a quiz's answer against a token of text."""
    text_weight: float = 1.0


def train_phase(
    model: "Gemma2ForCausalLM",
    lessons: LessonMaker,
    phase: Phase,
    report: Callable[[str, int, int, float], None],
) -> float:
    """Train `model` in place; returns the last smoothed loss in nats.

    `report` gets (phase name, steps done, steps in all, smoothed loss) after every step.
    """
    optimisers = _optimisers(model, phase)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimisers]
    smoothed = float("nan")
    drawn = _draw(lessons, phase, 0.0, 0)
    for step in range(phase.steps):
        progress = step / phase.steps
        at = step % STEPS_PER_DRAW
        if at == 0 and step:
            drawn = _draw(lessons, phase, progress, step)
        factor = _lr_factor(step, progress, phase.decay)
        for optimiser, lrs in zip(optimisers, peaks, strict=True):
            for group, lr in zip(optimiser.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        window = slice(at * phase.rows, (at + 1) * phase.rows)
        loss = lesson_loss(model, Lessons(*(part[window] for part in drawn)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        value = float(loss.detach())
        smoothed = value if step == 0 else 0.95 * smoothed + 0.05 * value
        report(phase.name, step + 1, phase.steps, smoothed)
    return smoothed


def lesson_loss(model: "Gemma2ForCausalLM", lessons: Lessons) -> Tensor:
    """Weighted next-token loss plus what the middle layers should have in mind. -> [], in nats.

    Deep supervision (Lee et al. 2015, arXiv:1409.5185): at the end of a quiz's question layer
    RECALL_LAYER is read out through the unembedding and should name the answer, and at each choice
    layer MARK_LAYER should tell right from wrong. Without it the answer's letter stays at chance
    for thousands of steps; with it quizzes are solved within hundreds.
    """
    out = model(input_ids=lessons.ids, use_cache=False, output_hidden_states=True)
    losses = F.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), lessons.ids[:, 1:].flatten(), reduction="none"
    )
    weights = lessons.weights[:, 1:].flatten()
    loss = (losses * weights).sum() / weights.sum()
    for layer, wanted in ((RECALL_LAYER, lessons.recall), (MARK_LAYER, lessons.marks)):
        here = wanted != IGNORED
        if here.any():
            thought = model.lm_head(model.model.norm(out.hidden_states[layer + 1][here]))
            loss = loss + F.cross_entropy(thought, wanted[here])
    return loss


def _draw(lessons: LessonMaker, phase: Phase, progress: float, step: int) -> Lessons:
    """Sequences for the next STEPS_PER_DRAW steps, in random order."""
    n = phase.rows * min(STEPS_PER_DRAW, phase.steps - step)
    diet = phase.diet(lessons, progress)
    drawn = lessons.rows(n, phase.length, diet, phase.answer_weight, phase.text_weight)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(step))
    return Lessons(*(part[order] for part in drawn))


def _lr_factor(step: int, progress: float, decay: float) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return max(warm * min(1.0, (1 - progress) / decay), MIN_LR_FACTOR)


def _optimisers(model: "Gemma2ForCausalLM", phase: Phase) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the weight matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    vectors = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            matrices,
            lr=phase.matrix_lr,
            momentum=0.95,
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(vectors, lr=phase.vector_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
