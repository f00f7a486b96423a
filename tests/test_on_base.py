"""A term on a base: fields and knob of both, and what it calls as super() is the base."""

from dataclasses import dataclass, fields

import pytest
import torch
from training import D_IN, D_SAE, FakeStream, activations, at, make

from bench import registry
from bench.errors import UserError
from bench.train import train_one
from bench.variant import Batch, Variant
from variants.relu import ReLU
from variants.topk import TopK

TERM = '''
from dataclasses import dataclass
from bench.variant import Variant
@dataclass(frozen=True)
class Settings:
    base: str = "low"
    weight: float = 0.0
    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must be at least 0")
class Term(Variant):
    """A term."""
    Config = Settings
    needs_base = True
    def losses(self, batch, step):
        return super().losses(batch, step) | {"term": self.cfg.weight * self.W_dec.sum()}
'''
BASE = '''
from dataclasses import dataclass
from bench.variant import Knob, Variant
@dataclass(frozen=True)
class Settings:
    k: int = 3
    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")
class NAME(Variant):
    """A base."""
    Config = Settings
    knob = Knob("k", raises_l0=True, native=True)
    def encode(self, x, positions=None):
        return (x @ self.W_enc).relu()
    def losses(self, batch, step):
        return {"reconstruction": (self(batch.x) - batch.x).pow(2).sum()}
    def export(self): ...
'''


@pytest.fixture
def term(plugins):
    plugins("variants/high.py", TERM)
    plugins("variants/low.py", BASE.replace("NAME", "Low"))
    plugins("variants/other.py", BASE.replace("NAME", "Other").replace("k: int = 3", "k: int = 5"))


def test_a_term_has_the_fields_and_the_knob_of_its_base(term):
    for config, k in (({}, 3), ({"base": "other"}, 5)):
        cls = registry.load("variants", "high", config)
        plugin = registry.describe("variants", "high", config)
        assert plugin.fields is not None and [f.name for f in plugin.fields] == [
            "k",
            "base",
            "weight",
        ]
        assert [f.name for f in fields(cls.Config)] == ["k", "base", "weight"]
        assert cls.Config().k == k and cls.knob.name == "k" and plugin.attributes["knob"]["native"]
    assert registry.load("variants", "high") is registry.load("variants", "high")


def test_both_check_their_own_fields(term):
    cls = registry.load("variants", "high")
    for field in ({"k": 0}, {"weight": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(field))}="):
            cls.Config(**field)


def test_the_term_comes_on_top_of_the_losses_of_the_base(term):
    sae = make(registry.load("variants", "high"), weight=0.5)
    losses = sae.losses(Batch(activations(8)), at())
    assert list(losses) == ["reconstruction", "term"]
    torch.testing.assert_close(losses["term"], 0.5 * sae.W_dec.sum())


def test_a_base_that_does_not_exist_or_is_a_term_is_refused(term, plugins):
    with pytest.raises(UserError, match="unknown variant 'lowe': did you mean 'low'"):
        registry.load("variants", "high", {"base": "lowe"})
    plugins("variants/higher.py", TERM.replace('"low"', '"high"'))
    with pytest.raises(UserError, match="base='high': needs a base itself"):
        registry.load("variants", "higher")


def test_a_base_with_a_training_of_its_own_is_refused():
    class Own(ReLU):
        def train(self, stream=True):  # type: ignore[override]
            return self

    class Nothing(Variant):
        needs_base = True

    with pytest.raises(ValueError, match="training of its own"):
        Nothing.on_base(Own)


def test_two_fields_of_one_name_are_refused():
    @dataclass(frozen=True)
    class Clash:
        base: str = "relu"
        l1: float = 0.0

    class Term(Variant):
        Config = Clash
        needs_base = True

    with pytest.raises(ValueError, match="Term and ReLU both have l1"):
        Term.on_base(ReLU)


@pytest.mark.parametrize(("base", "config"), [(ReLU, {}), (TopK, {"k": 3})])
def test_a_term_that_adds_nothing_is_its_base_bit_for_bit(base, config):
    class Nothing(Variant):
        needs_base = True

    stream, weights = FakeStream(n_steps=20), []
    for variant in (base, Nothing.on_base(base)):
        sae = make(variant, **config)
        assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
        train_one(sae, stream)
        weights.append(sae.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "term", [n for n in registry.names("variants") if registry.describe("variants", n).base]
)
@pytest.mark.parametrize(
    "base", [n for n in registry.names("variants") if not registry.describe("variants", n).base]
)
def test_every_term_can_sit_on_every_base(term, base):
    cls = registry.load("variants", term, {"base": base})
    low = registry.load("variants", base)
    assert issubclass(cls, low) and cls.knob == low.knob
    assert cls.Config(base=base).base == base
