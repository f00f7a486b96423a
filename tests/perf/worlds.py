"""Two worlds in which whole suites are timed: the shipped nano pair, and a toy with Gemma's ratios.

Both read the nano world's texts, some of them; both engines get the same model objects and SAEs.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

PROBING_SETS = ("LabHC/bias_in_bios_class_set1", "fancyzhx/ag_news")
HAZARD = "wmdp-bio"
TEXTS = ("wikitext/wikitext-2-raw-v1/test", "bio-forget-corpus/train")
KINDS = ("topk", "relu", "jumprelu")
SEED = 42


@dataclass(frozen=True)
class Shape:
    """What decides the floating-point operations of a language model and an SAE per token."""

    d_model: int
    d_mlp: int
    d_attention: int
    """Heads times their width."""
    d_keys: int
    """Key-value heads times their width."""
    n_layers: int
    below: int
    """Blocks up to the hook."""
    d_vocab: int
    d_sae: int

    @property
    def block(self) -> int:
        """Multiplications of one block."""
        attention = 2 * self.d_attention + 2 * self.d_keys
        return self.d_model * (3 * self.d_mlp + attention)

    def ratios(self) -> dict[str, float]:
        """What the toy has in common with Gemma-2-2B."""
        forward = self.n_layers * self.block + self.d_model * self.d_vocab
        return {
            "blocks below the hook": self.below / self.n_layers,
            "unembedding / whole pass": self.d_model * self.d_vocab / forward,
            "encoding / blocks below": self.d_model * self.d_sae / (self.below * self.block),
            "d_sae / d_model": self.d_sae / self.d_model,
            "vocabulary / d_model": self.d_vocab / self.d_model,
        }


GEMMA = Shape(2304, 9216, 2048, 1024, 26, 13, 256_000, 16_384)
TOY = Shape(96, 1944, 88, 44, 6, 3, 10_667, 683)
"""Gemma's in 6 blocks in place of 26, each as wide as 4 1/3, so that a CPU spends its time on
matrix products and not on calls."""
NANO = Shape(96, 0, 0, 0, 5, 3, 1_984, 1_536)


@dataclass
class World:
    """A model pair, its data, and the settings of the four suites in it."""

    name: str
    shape: Shape
    spec: Any
    hub: Any
    models: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    is_planted: bool = False
    """Whether questions count as reliably answered without asking them in all orders."""
    words_per_letter: int = 1000
    saes: list[Any] = field(default_factory=list)

    @property
    def hook(self) -> str:
        return f"blocks.{self.shape.below - 1}.hook_resid_post"

    def context(self, folder: Path, engine: str) -> Any:
        """An EvalContext on the world's models."""
        from bench.context import EvalContext

        ctx = EvalContext(
            spec=self.spec,
            hub=self.hub,
            seed=SEED,
            work=folder / "scratch",
            artifacts=folder / "artifacts",
            engine=engine,  # type: ignore[arg-type]
        )
        ctx._models.update(self.models)  # type: ignore[arg-type]
        return ctx

    def handles(self, n: int) -> list[Any]:
        """The first n SAEs, of three kinds in turn."""
        from bench.suite import SaeHandle

        while len(self.saes) < n:
            self.saes.append(self._sae(len(self.saes)))
        return [
            SaeHandle(f"{KINDS[i % len(KINDS)]}-{i}", sae, {"l0": 8.0})
            for i, sae in enumerate(self.saes[:n])
        ]

    def _sae(self, i: int) -> Any:
        """An SAE whose latents are activations seen from their mean; about 8 of them fire."""
        import torch
        from sae_lens import saes

        kind, x = KINDS[i % len(KINDS)], _activations(self)
        draws = torch.Generator().manual_seed(i)
        rows = x[torch.randint(len(x), (self.shape.d_sae,), generator=draws)] - x.mean(0)
        rows = rows + 0.1 * rows.std() * torch.randn(rows.shape, generator=draws)
        rows = rows / rows.norm(dim=-1, keepdim=True)
        common: Any = {
            "d_in": self.shape.d_model,
            "d_sae": self.shape.d_sae,
            "apply_b_dec_to_input": True,
        }
        make: Any = {
            "topk": lambda: saes.TopKSAE(saes.TopKSAEConfig(k=8, **common)),
            "relu": lambda: saes.StandardSAE(saes.StandardSAEConfig(**common)),
            "jumprelu": lambda: saes.JumpReLUSAE(saes.JumpReLUSAEConfig(**common)),
        }
        sae = make[kind]()
        high = ((x - x.mean(0)) @ rows.T).quantile(1 - 8 / self.shape.d_sae, dim=0)
        with torch.no_grad():
            sae.W_dec.copy_(rows)
            sae.W_enc.copy_(rows.T)
            sae.b_dec.copy_(x.mean(0))
            sae.b_enc.zero_()
            if kind == "relu":
                sae.b_enc.copy_(-high)
            elif kind == "jumprelu":
                sae.threshold.copy_(high)
        sae.cfg.metadata.hook_name = self.hook
        sae.cfg.metadata.model_name = "nano"
        sae.cfg.metadata.prepend_bos = True
        return sae


SAEBENCH_BATCHES = {"n_eval_reconstruction_batches": 2, "n_eval_sparsity_variance_batches": 20}
"""One to ten, as SAEBench has 200 and 2,000."""


@cache
def nano() -> World:
    """The shipped pair, with the demo's settings on fewer texts."""
    from bench.datasets import LocalHub
    from bench.models import load_model, resolve

    models = {"base": load_model(resolve("nano")), "instruct": load_model(resolve("nano-it"))}
    configs = {
        "core": {
            "context_size": 128,
            "n_eval_reconstruction_batches": 3,
            "n_eval_sparsity_variance_batches": 6,
            "exclude_special_tokens_from_reconstruction": True,
        },
        "sparse_probing": {
            "dataset_names": PROBING_SETS,
            "probe_train_set_size": 400,
            "probe_test_set_size": 200,
            "context_length": 64,
        },
        "absorption": _absorption(min_feats_for_eval=15, min_GT_probe_f1=0.5),
        "unlearning": {
            "retain_thresholds": (0.0005, 0.001),
            "n_features_list": (40, 80),
            "multipliers": (100, 200),
            "dataset_size": 100,
            "seq_len": 128,
            "llm_batch_size": 16,
        },
    }
    hub = LocalHub(_data("nano", hazard=20, benign=20))
    return World("nano", NANO, resolve("nano"), hub, models, configs, words_per_letter=40)


@cache
def toy() -> World:
    """Random weights in Gemma-2-2B's proportions, with questions that it answers by definition."""
    from bench.datasets import LocalHub
    from bench.models import ModelSpec, load_model

    folder = tiny.folder() / "toy"
    _save_toy(folder)
    spec = ModelSpec("nano", "nano", str(folder), "base", TOY.n_layers, TOY.d_model, "nano-it")
    sibling = ModelSpec("nano-it", "nano", str(folder), "instruct", TOY.n_layers, TOY.d_model)
    models = {"base": load_model(spec), "instruct": load_model(sibling)}
    configs = {
        "core": {"context_size": 128, "batch_size_prompts": 8, **SAEBENCH_BATCHES},
        "sparse_probing": {
            "dataset_names": PROBING_SETS,
            "probe_train_set_size": 400,
            "probe_test_set_size": 100,
            "context_length": 128,
        },
        "absorption": _absorption(min_feats_for_eval=15, min_GT_probe_f1=0.3),
        "unlearning": {
            "multipliers": (25, 50, 100, 200),
            "min_questions": 1,
            "dataset_size": 60,
            "seq_len": 256,
            "llm_batch_size": 4,
        },
    }
    root = _data("toy", hazard=24, benign=2)
    _plant_answers(root, models["instruct"])
    return World("toy", TOY, spec, LocalHub(root), models, configs, True, words_per_letter=40)


WORLDS = {"toy": toy, "nano": nano}


@contextmanager
def few_words(n: int) -> Iterator[None]:
    """At most n of sae_bench's words for each letter."""
    import sae_bench.evals.absorption.vocab as vocab

    original = vocab.get_alpha_tokens

    def words(tokenizer: Any) -> list[str]:
        by_letter: dict[str, list[str]] = {}
        for word in sorted(original(tokenizer)):
            by_letter.setdefault(word.strip()[0].lower(), []).append(word)
        return [w for group in by_letter.values() for w in group[:n]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab, "get_alpha_tokens", words)
        yield


def _absorption(**limits: Any) -> dict[str, Any]:
    """sae_bench at its fastest: all words encoded once, in large batches."""
    return {
        "llm_batch_size": 64,
        "k_sparse_probe_batch_size": 1024,
        "eval_k_sparse_probe_batch_size": 512,
        "precalc_k_sparse_probe_sae_acts": True,
        **limits,
    }


def _data(name: str, *, hazard: int, benign: int) -> Path:
    """Data sets with so many questions on the hazard, and in each benign quiz."""
    from bench.nano.data import DataSizes, write_datasets

    root = tiny.folder() / f"data-{name}"
    write_datasets(
        root, DataSizes(web=4000, retain=120, forget=100, probe_train=400, probe_test=200)
    )
    for file in _quizzes(root):
        lines = file.read_text().splitlines(keepends=True)
        n = hazard if file.parent.name == HAZARD else benign
        file.write_text("".join(lines[:n]))
    return root


def _quizzes(root: Path) -> list[Path]:
    return sorted([*root.glob("cais/wmdp/*/test.jsonl"), *root.glob("cais/mmlu/*/test.jsonl")])


def _save_toy(folder: Path) -> None:
    """A random Gemma-2 whose words have a direction for their first letter."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    tokenizer = tiny.tokenizer()
    config = Gemma2Config(
        vocab_size=TOY.d_vocab,
        hidden_size=TOY.d_model,
        intermediate_size=TOY.d_mlp,
        num_hidden_layers=TOY.n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=TOY.d_attention // 4,
        max_position_embeddings=1024,
        query_pre_attn_scalar=TOY.d_attention // 4,
        sliding_window=512,
        initializer_range=0.1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = Gemma2ForCausalLM(config)
    letters = torch.randn(26, TOY.d_model) * 0.3
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        for token, i in tokenizer.get_vocab().items():
            first = token.lstrip("\u2581")[:1].lower()
            if "a" <= first <= "z":
                embedding[i] += letters[ord(first) - ord("a")]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plant_answers(root: Path, model: Any) -> None:
    """Declare right what the model answers."""
    import torch

    from bench.unlearning.asking import Asker
    from bench.unlearning.questions import Question

    asker = Asker(model, 8)
    for file in _quizzes(root):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found = [Question(r["question"], r["choices"], r["answer"]) for r in rows]
        with torch.no_grad():
            answers = asker.read(asker.tokens([q.prompt(file.parent.name) for q in found]))
        for row, answer in zip(rows, answers, strict=True):
            row["answer"] = answer
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@cache
def _seen(name: str) -> Any:
    """[n, d_in] of the base model reading texts of both corpora."""
    from bench.context import activations_on

    world = WORLDS[name]()
    ctx = world.context(tiny.folder() / f"seen-{name}", "fast")
    texts = [
        json.loads(line)["text"]
        for file in TEXTS
        for line in (world.hub.root / f"{file}.jsonl").read_text().splitlines()[:40]
    ]
    return activations_on(ctx, "base", world.hook, texts)


def _activations(world: World) -> Any:
    return _seen(world.name)
