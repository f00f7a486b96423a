"""A plugin that passes every point of `check`, and for each point a change that breaks just it."""

from typing import NamedTuple

GOOD = '''\
from dataclasses import dataclass

import torch

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Variant


class Mine(Variant):
    """ReLU SAE with unit rows."""

    @dataclass(frozen=True)
    class Config:
        l1: float = 0.05
        """Weight of the penalty."""

        def __post_init__(self):
            if self.l1 < 0:
                raise ValueError(f"l1={self.l1}")

    knob = Knob("l1", raises_l0=False, native=False)

    def encode(self, x, positions=None):
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def losses(self, batch: Batch, step: Step):
        f = self.encode(batch.x)
        return {
            "reconstruction": ops.squared_error(batch.x, self.decode(f)),
            "sparsity": self.cfg.l1 * f.sum(-1).mean(),
        }

    def after_step(self, batch: Batch, step: Step):
        ops.normalise_rows_(self.W_dec)

    def export(self):
        weights = {name: p.detach().clone() for name, p in self.named_parameters()}
        return Exported("standard", {"apply_b_dec_to_input": True}, weights)
'''
RELU = "return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)"
PENALTY = "self.cfg.l1 * f.sum(-1).mean(),"
STANDARD = 'Exported("standard", {"apply_b_dec_to_input": True}, weights)'
HELPER = "\n    def helper(self):\n        return "
IN_SEQUENCE = "class Mine(Variant):\n", "class Mine(Variant):\n    needs_sequences = True\n"


class Mutant(NamedTuple):
    """A change that one point must find."""

    changes: tuple[tuple[str, str], ...]
    """(old, new) in GOOD; an empty old appends."""
    says: str
    """Part of the message."""

    @property
    def source(self) -> str:
        text = GOOD
        for old, new in self.changes:
            assert old in text, old
            text = text.replace(old, new, 1) if old else text + new
        return text


def added(term: str) -> tuple[str, str]:
    """One more term of the loss."""
    return PENALTY, f'{PENALTY}\n            "more": {term},'


FAILING = {
    "imports": Mutant((("", "\nlimit = 1 / 0\n"),), ":40: ZeroDivisionError"),
    "names": Mutant((("", f"{HELPER}tau * 2\n"),), ":41: name 'tau' is not defined"),
    "swallowed": Mutant(
        (
            (
                "",
                "\n    def spare(self):\n        try:\n            return 1\n"
                "        except Exception:\n            return 0\n",
            ),
        ),
        ":43: `except Exception` hides every mistake",
    ),
    "config": Mutant((("l1: float = 0.05", "l1: int = 0.05"),), "l1=0.05: must be a whole number"),
    "interface": Mutant((('Knob("l1"', 'Knob("l2"'),), "the knob 'l2' is no field"),
    "build": Mutant(
        (
            (
                "    def encode",
                "    def __init__(self, *args, **kwargs):\n"
                "        super().__init__(*args, **kwargs)\n"
                "        self.W_enc.data.normal_()\n\n    def encode",
            ),
        ),
        "W_enc differs between two builds from one seed",
    ),
    "attributes": Mutant(
        (("", f"{HELPER}self.cfg.alpha\n"),), ":41: self.cfg.alpha does not exist"
    ),
    "losses": Mutant((added("0 * f.min().log()"),), "term 'more' is nan"),
    "attached": Mutant((("f.sum(-1).mean(),", "f.detach().sum(-1).mean(),"),), "is detached"),
    "gradients": Mutant((("@ self.W_enc + self.b_enc", "@ self.W_enc"),), "reaches b_enc"),
    "memory": Mutant(
        (added("1e-3 * (f.unsqueeze(1) * f.unsqueeze(0)).mean()"),),
        "shape [512, 512, 128] at 512 tokens",
    ),
    "memory_latents": Mutant(
        (added("1e-3 * (self.W_dec @ self.W_dec.T).pow(2).mean()"),), "shape [4096, 4096]"
    ),
    "order": Mutant(
        (added("0.1 * (f[1:] - f[:-1]).pow(2).sum(-1).mean()"),),
        "neighbouring rows of the shuffled",
    ),
    "sequences": Mutant((IN_SEQUENCE,), "positions and context ids are ignored"),
    "mask": Mutant(
        (IN_SEQUENCE, added("0.1 * self.encode(batch.contexts).diff(dim=1).pow(2).mean()")),
        "depends on tokens where `batch.mask` is False",
    ),
    "trains": Mutant(
        (
            (
                "",
                "\n    def train(self, stream=True):\n"
                "        return super().train(stream) if isinstance(stream, bool) else None\n",
            ),
        ),
        "no weight has changed",
    ),
    "alive": Mutant(
        (
            (
                "    def encode",
                "    def __init__(self, *args, **kwargs):\n"
                "        super().__init__(*args, **kwargs)\n"
                "        self.b_enc.data.fill_(-1e3)\n\n    def encode",
            ),
        ),
        "dead on arrival",
    ),
    "descent": Mutant(
        (("squared_error(batch.x, ", "squared_error(0.01 * batch.x, "),), "before and"
    ),
    "repeats": Mutant(
        (
            ("import torch\n", "import random\n\nimport torch\n"),
            ("self.cfg.l1 * f", "random.random() * self.cfg.l1 * f"),
        ),
        "differs between two trainings",
    ),
    "resume": Mutant(
        (
            (
                "        f = self.encode(batch.x)\n",
                "        f = self.encode(batch.x)\n        self.n = getattr(self, 'n', 0) + 1\n",
            ),
            ("self.cfg.l1 * f", "self.cfg.l1 / self.n * f"),
        ),
        "when training goes on from a checkpoint",
    ),
    "shapes": Mutant(
        (("(x - self.b_dec) @ self.W_enc", "torch.mm(x - self.b_dec, self.W_enc)"),),
        ":24: RuntimeError",
    ),
    "inference": Mutant(
        ((RELU, "return ops.keep_batch_top_k((x - self.b_dec) @ self.W_enc + self.b_enc, 4.0)"),),
        "is encoded otherwise than in its batch",
    ),
    "export": Mutant((('"standard"', '"standart"'),), "is none of SAELens's"),
    "save": Mutant((('"apply_b_dec_to_input": True', '"apply_b_dec_to_input": False'),), "after"),
    "norms": Mutant(
        (("        ops.normalise_rows_(self.W_dec)", "        self.W_dec.data.mul_(1.0)"),),
        "decoder rows have norms from",
    ),
    "suites": Mutant(
        (
            (
                RELU,
                "pre = (x - self.b_dec) @ self.W_enc + self.b_enc\n"
                "        kept = pre.abs().topk(4).indices\n"
                "        return torch.zeros_like(pre).scatter(-1, kept, pre.gather(-1, kept))",
            ),
            (STANDARD, 'Exported("abstopk", {"k": 4, "apply_b_dec_to_input": True}, weights)'),
        ),
        "feature acts go down to -",
    ),
    "knob": Mutant((("raises_l0=False", "raises_l0=True"),), "but raises_l0=True"),
    "state": Mutant(
        (("", "\n    def start(self, x):\n        torch.set_num_threads(3)\n"),),
        "changes torch.set_num_threads",
    ),
}
"""Point -> the plugin that fails exactly it."""

WARNING = {
    "refuses": Mutant((("if self.l1 < 0", "if self.l1 != self.l1"),), "accepts l1=-1"),
    "positions": Mutant(
        (
            (
                RELU,
                "f = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)\n"
                "        return f if positions is None else f * positions[:, None]",
            ),
        ),
        "encode depends on positions",
    ),
}
"""Point -> a plugin that gets a warning there and fails nowhere."""

EXPERIMENTS = {
    "name error in a property that only saving reads": (
        "names",
        Mutant(
            (
                (
                    "        def __post_init__",
                    "        @property\n        def summary(self):\n"
                    "            return f'{alpha}'\n\n"
                    "        def __post_init__",
                ),
            ),
            "name 'alpha' is not defined",
        ),
    ),
    "missing import": (
        "names",
        Mutant(
            (("        f = self.encode(batch.x)", "        f = F.dropout(self.encode(batch.x))"),),
            "name 'F' is not defined",
        ),
    ),
    "wrong trainer name": (
        "names",
        Mutant(
            (
                (
                    "",
                    "\n    def train(self, stream=True):\n"
                    "        from bench.train import TopKTrainer\n"
                    "        return TopKTrainer(self).fit(stream)\n",
                ),
            ),
            "bench.train has no 'TopKTrainer'",
        ),
    ),
    "a broadcast of all pairs of tokens": ("memory", FAILING["memory"]),
    "training of no steps": ("trains", FAILING["trains"]),
    "odd and even rows of a shuffled batch as neighbours": (
        "order",
        Mutant(
            (added("0.1 * (1 - torch.cosine_similarity(f[0::2], f[1::2], dim=-1)).mean()"),),
            "neighbouring rows of the shuffled",
        ),
    ),
    "swallowed errors": (
        "swallowed",
        Mutant(
            (
                (
                    "        f = self.encode(batch.x)\n",
                    "        f = self.encode(batch.x)\n        try:\n"
                    "            extra = step.nothing\n"
                    "        except:\n            pass\n",
                ),
            ),
            "`except:` hides every mistake",
        ),
    ),
}
"""Miniatures of experiments that never trained: what went wrong -> (its point, the plugin)."""
