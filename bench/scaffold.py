"""`new variant NAME`, `new suite NAME`: a plugin that works, and a test of it, to start from."""

import keyword
import re
from pathlib import Path
from typing import NamedTuple

from bench import registry
from bench.errors import UserError
from bench.files import write_atomic
from bench.registry import Kind

VARIANT = '''\
"""@CLASS@: ReLU SAE with a logarithmic penalty, which spares what is strongly active."""

from dataclasses import dataclass

import torch

from bench import ops
from bench.variant import Batch, Exported, Knob, Step, Variant


class @CLASS@(Variant):
    """ReLU SAE, squared error, penalty sum_i log(1 + f_i / width)."""

    @dataclass(frozen=True)
    class Config:
        weight: float = 0.02
        """Weight of the penalty, in units of the squared error."""
        width: float = 0.1
        """Feature act from which on the penalty flattens, in units of the norm of x."""

        def __post_init__(self):
            if self.weight < 0 or self.width <= 0:
                raise ValueError(f"weight={self.weight} or width={self.width} is too small")

    knob = Knob("weight", raises_l0=False, native=False)  # searched for to meet a target L0

    def encode(self, x, positions=None):
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def losses(self, batch: Batch, step: Step):
        f = self.encode(batch.x)  # [n, d_sae]
        penalty = torch.log1p(f / self.cfg.width).sum(-1).mean()
        return {
            "reconstruction": ops.squared_error(batch.x, self.decode(f)),
            "sparsity": self.cfg.weight * step.sparsity_warmup * penalty,
        }

    def after_step(self, batch: Batch, step: Step):
        ops.normalise_rows_(self.W_dec)  # or latents would grow to lower the penalty

    def export(self):
        weights = {name: p.detach().clone() for name, p in self.named_parameters()}
        return Exported("standard", {"apply_b_dec_to_input": True}, weights)
'''

VARIANT_TEST = '''\
"""@CLASS@ conforms to the interface, and its penalty is what its docstring says."""

import math
@PATH_IMPORT@
import torch

from bench import registry
from bench.check.kit import check, find
from bench.ops import generator
from bench.variant import Batch, Step

PLUGIN = @PLUGIN@


def test_it_passes_the_conformance_kit():
    report = check(PLUGIN)
    assert report.is_ok, "\\n".join(report.lines())


def test_the_penalty_of_one_latent_by_hand():
    variant = registry.load("variants", find(PLUGIN).name)(2, 3, generator=generator(0, "test"))
    with torch.no_grad():
        variant.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]))
    step = Step(progress=0.5, sparsity_warmup=0.5, dead=torch.zeros(3, dtype=torch.bool))
    terms = variant.losses(Batch(torch.tensor([[0.3, 0.0]])), step)
    # only the first latent fires, with 0.3; weight 0.02, halved by the warm-up, width 0.1
    assert math.isclose(terms["sparsity"].item(), 0.01 * math.log(1 + 3), rel_tol=1e-6)
'''

SUITE = '''\
"""@CLASS@: how many latents are dense, which are rarely about one thing."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from bench.context import EvalContext
from bench.suite import Metric, SaeHandle, Scored, Suite, Unit

TEXT = "Skylion007/openwebtext"


class @CLASS@(Suite):
    """Share of latents that fire on many tokens."""

    @dataclass(frozen=True)
    class Config:
        n_texts: int = 256
        """Texts whose tokens are looked at."""
        dense_from: float = 0.1
        """Share of tokens from which on a latent counts as dense."""

        def __post_init__(self):
            if self.n_texts < 1 or not 0 < self.dense_from <= 1:
                raise ValueError(f"n_texts={self.n_texts} or dense_from={self.dense_from}")

    metrics = (
        Metric("dense_latents", "lower", 0.0, 1.0, headline=True, summary="share of all latents"),
    )
    side = "base"
    hooks = ("hook_resid_post", "hook_resid_pre", "hook_mlp_out", "hook_attn_out")
    datasets = (TEXT,)
    rehearsal = {"n_texts": 8}  # what `check` runs it with

    def run(self, ctx: EvalContext, saes: list[SaeHandle]) -> Iterator[Scored]:
        import torch

        model = ctx.model(self.side)
        rows = ctx.hub.load_dataset(TEXT, split="train", streaming=True)
        texts = [row["text"] for row in islice(rows, self.cfg.n_texts)]
        with torch.no_grad():
            tokens = model.to_tokens(texts)[:, :128]
            is_text = ~torch.isin(tokens, torch.tensor(model.tokenizer.all_special_ids))
            for handle in saes:
                hook = handle.sae.cfg.metadata.hook_name
                x = model.run_with_cache(tokens, names_filter=[hook])[1][hook][is_text]
                rate = (handle.sae.encode(x) > 0).float().mean(0)  # [d_sae]
                value = (rate >= self.cfg.dense_from).float().mean().item()
                yield Scored(
                    handle.label,
                    {"dense_latents": value},
                    [Unit("dense_latents", "sae", "all", value, len(rate))],
                    saebench=None,
                    invalid=None if rate.any() else "no latent fires",
                )
'''

SUITE_TEST = '''\
"""@CLASS@ conforms to the interface, and counts what its docstring says."""

@PATH_BLOCK@import pytest

from bench import registry
from bench.check.kit import check, find

PLUGIN = @PLUGIN@


def test_it_passes_the_conformance_kit():
    report = check(PLUGIN)
    assert report.is_ok, "\\n".join(report.lines())


def test_a_share_above_one_is_refused():
    suite = registry.load("suites", find(PLUGIN).name)
    with pytest.raises(ValueError, match="dense_from=2"):
        suite.Config(dense_from=2.0)
'''

TEMPLATES: dict[Kind, tuple[str, str]] = {
    "variants": (VARIANT, VARIANT_TEST),
    "suites": (SUITE, SUITE_TEST),
}


class Written(NamedTuple):
    """The new files."""

    plugin: Path
    test: Path


def new(kind: Kind, name: str, folder: Path | None = None) -> Written:
    """Write a working plugin and its test; into the checkout, or both into `folder`.

    Raises UserError for a name that cannot be one or is taken, or a file that exists.
    """
    what = kind.removesuffix("s")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{what} {name!r}: a name is lower-case letters, digits and _, like top_k")
    if name in registry.names(kind) or name in registry.control_names():
        raise UserError(f"{what} {name!r}: exists already, choose another name")
    files = _files(kind, name, folder)
    for path in files:
        if path.exists():
            raise UserError(f"{what} {name!r}: {path} exists already, remove it or choose a name")
    for path, template in zip(files, TEMPLATES[kind], strict=True):
        write_atomic(path, _filled(template, name, in_checkout=folder is None))
    return files


def _files(kind: Kind, name: str, folder: Path | None) -> Written:
    if folder is not None:
        return Written(folder / f"{name}.py", folder / f"test_{name}.py")
    tests = registry.ROOT / "tests"
    if not tests.is_dir():
        raise UserError(
            "the package is installed and has no tests folder: give --dir DIR for the new files"
        )
    return Written(registry.ROOT / kind / f"{name}.py", tests / f"test_{kind}_{name}.py")


def _filled(template: str, name: str, *, in_checkout: bool) -> str:
    plugin = f'"{name}"' if in_checkout else f'str(Path(__file__).with_name("{name}.py"))'
    words = {
        "@CLASS@": "".join(part.capitalize() for part in name.split("_")),
        "@PLUGIN@": plugin,
        "@PATH_IMPORT@": "" if in_checkout else "from pathlib import Path\n",
        "@PATH_BLOCK@": "" if in_checkout else "from pathlib import Path\n\n",
    }
    for mark, text in words.items():
        template = template.replace(mark, text)
    return template
