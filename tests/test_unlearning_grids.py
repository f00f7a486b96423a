"""Our grids: latents in units of their strength, random ones alike, and the means' difference."""

import json

import numpy as np
import pytest
import torch

from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.errors import UserError
from bench.ledger import PlannedCell
from bench.plan import suite_jobs
from bench.unlearning.corpora import forget_texts, retain_texts
from bench.unlearning.direction import Activations, MeanDifference, Sample
from bench.unlearning.matched import matched
from bench.unlearning.strength import Strengths
from suites.unlearning import UnlearningSuite
from tests import nano
from tests.cells import sae


def test_the_strength_of_a_latent_is_its_99th_percentile_where_it_fires():
    draws = torch.Generator().manual_seed(0)
    f = torch.randn(4000, 3, generator=draws).exp() * torch.tensor([1.0, 40.0, 0.0])
    f[torch.rand(f.shape, generator=draws) < 0.7] = 0.0
    strengths = Strengths(3)
    for batch in f.split(999):
        strengths.add(batch[None])  # any leading shape
    found = strengths.quantile(0.99)
    for i in range(2):
        exact = np.quantile(f[:, i][f[:, i] > 0].numpy(), 0.99, method="inverted_cdf")
        assert found[i].item() == pytest.approx(exact, rel=0.011)
    assert found[2] == 0


def test_random_latents_are_as_rare_on_benign_text_and_others():
    draws = np.random.default_rng(0)
    retain = draws.permutation(np.repeat([0.0, 1e-4, 1e-3, 1e-2], 100))
    forget = draws.random(400) + 0.1
    chosen = [int(i) for kind in (1e-4, 1e-2) for i in np.flatnonzero(retain == kind)[:15]]
    found = matched(chosen, forget, retain, seed=1)
    assert retain[found].tolist() == retain[chosen].tolist()
    assert len(set(found)) == len(chosen) and not set(found) & set(chosen)
    assert matched(chosen, forget, retain, seed=1) == found != matched(chosen, forget, retain, 2)


def test_dead_latents_are_not_drawn_and_there_may_be_too_few():
    forget, retain = np.array([0.2, 0.0, 0.1, 0.0]), np.array([0.0, 0.0, 0.0, 0.3])
    assert sorted(matched([0], forget, retain, 0) + matched([0], forget, retain, 1))
    assert set(matched([0, 1, 2], forget, retain, 0)) == {3}
    assert matched([], forget, retain, 0) == []


def sample(x):
    """A corpus of one batch whose first position is no text."""
    found = Sample(x.shape[0] * x.shape[1])
    is_text = torch.ones(x.shape[:2], dtype=torch.bool)
    is_text[:, 0] = False
    found.add(x, is_text)
    return found


def test_the_direction_is_the_difference_of_means_and_fires_where_benign_text_does_not():
    draws = torch.Generator().manual_seed(0)
    retain = torch.randn(40, 26, 4, generator=draws, dtype=torch.double)
    forget = retain.flip(0) + torch.tensor([5.0, 0, 0, 0])
    mean_difference = MeanDifference(Activations(sample(forget), sample(retain)), (0.01, 0.1))
    f = mean_difference.encode(retain[:, 1:])
    share = (f > 0).double().mean((0, 1))
    assert (share < torch.tensor([0.01, 0.1])).all() and (share > torch.tensor([0.008, 0.09])).all()
    x = forget[:, 1:].reshape(-1, 4)
    rest = retain[:, 1:].mean((0, 1))
    direction = torch.tensor([1.0, 0, 0, 0], dtype=torch.double)
    f = mean_difference.encode(x)[:, :1]
    ablated = x - mean_difference.W_dec[:1].T.mul(f[..., None]).squeeze(-1)
    expected = torch.where(f > 0, x - ((x - rest) @ direction)[:, None] * direction, x)
    assert torch.allclose(ablated, expected)
    along = ((x - rest) @ direction)[f[:, 0] > 0]
    both = torch.cat([along, ((retain[:, 1:].reshape(-1, 4) - rest) @ direction)])
    high = both[both > along.min() - 1e-9].quantile(0.99)
    assert mean_difference.high[0].item() == pytest.approx(high.item(), rel=1e-3)


def test_a_long_corpus_is_sampled_evenly_and_its_mean_is_exact(monkeypatch):
    monkeypatch.setattr("bench.unlearning.direction.N_SAMPLED", 10)
    x = torch.arange(100.0)[:, None].reshape(10, 10, 1)
    found = Sample(100)
    for batch in x.split(3):
        found.add(batch, torch.ones(batch.shape[:2], dtype=torch.bool))
    assert found.x.flatten().tolist() == list(range(0, 100, 10))
    assert found.mean.item() == 49.5


class Clipped:
    """An SAE in units of its latents' strength, for sae_bench's own clamp."""

    def __init__(self, sae, high):
        self.sae, self.high = sae, high.clamp(min=1e-9)

    def encode(self, x):
        return self.sae.encode(x) / self.high

    def decode(self, f):
        return self.sae.decode(f * self.high)


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_steering_is_sae_benchs_clamp_on_an_sae_in_units_of_strength(tmp_path, kind):
    """Answers of whole passes with sae_bench's hook, prompt by prompt."""
    from sae_bench.evals.unlearning.utils.intervention import anthropic_clamp_resid_SAE_features

    from bench.unlearning.asking import Asker
    from bench.unlearning.clamping import Clamping
    from bench.unlearning.questions import questions

    ctx = nano.context(tmp_path)
    model, sae = ctx.model("instruct"), nano.make_sae(kind)
    high = torch.linspace(0.5, 9.0, nano.D_SAE)
    with torch.no_grad():
        asker = Asker(model, 8)
        asked = [q.prompt("wmdp-bio") for q in questions(ctx, "wmdp-bio")[:10]]
        tokens = asker.tokens(asked)
        chosen = list(range(0, 120, 2))
        clamping = Clamping(asker, sae, asker.residuals(tokens, 3), chosen, block=3, high=high)
        unchanged = asker.read(tokens)
        n_changed = 0
        for latents, multiplier in ((chosen, 4.0), (chosen[:40], 12.0)):

            def hook(resid, hook, latents=latents, multiplier=multiplier):
                return anthropic_clamp_resid_SAE_features(
                    resid, hook, Clipped(sae, high), latents, multiplier
                )

            with model.hooks(fwd_hooks=[(nano.HOOK, hook)]):
                expected = asker_free_answers(model, asker, tokens)
            wanted = clamping.interventions(latents, multiplier)
            answers = clamping.steered([w for w in wanted if w.latents])
            found = [answers.get(w, a) for w, a in zip(wanted, unchanged, strict=True)]
            assert found == expected
            n_changed += sum(a != b for a, b in zip(found, unchanged, strict=True))
    assert n_changed > 3


def asker_free_answers(model, asker, tokens):
    """The likeliest letter after each prompt, from whole passes."""
    logits = torch.stack([model(one[None])[0, -1, asker._letters] for one in tokens])
    return logits.reshape(-1, 2, 4).amax(1).argmax(-1).tolist()


def test_corpora_are_read_from_files_of_either_kind(tmp_path):
    import pyarrow
    import pyarrow.parquet

    ctx, texts = nano.context(tmp_path), ["Anthrax é one.", "Two\nlines."]
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    lines.write_text("".join(json.dumps({"text": t, "id": 1}) + "\n" for t in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), table)
    cfg = UnlearningSuite.Config(forget=str(lines), retain=str(table))
    assert forget_texts(ctx, cfg) == retain_texts(ctx, cfg) == texts
    ours = UnlearningSuite.Config()
    assert len(forget_texts(ctx, ours)) > 2 < len(retain_texts(ctx, ours))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "forget='.*a.jsonl': there is no such file"),
        ('{"body": "x"}\n', "every row needs a column 'text'"),
        ("", "holds no text"),
        ("{oops\n", "line 1: is not JSON"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_an_error_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        forget_texts(nano.context(tmp_path), UnlearningSuite.Config(forget=str(path)))
    assert "\n" not in str(error.value)


def test_a_file_below_the_working_directory_is_found_by_the_suites_process(tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    fields = {"forget": "mine.jsonl", "retain": "wikitext"}
    config = RunConfig(
        name="x",
        model="nano",
        hook_name=nano.HOOK,
        train=TrainConfig(d_sae=8, tokens=512),
        variants=(VariantConfig("relu"),),
        suites={"unlearning": fields},
    )
    planned = PlannedCell("key", "unlearning", sae(), tmp_path, tmp_path / "a", tmp_path / "b")
    (job,) = suite_jobs(config, [planned], {"unlearning": "revision"}, tmp_path / "work", tmp_path)
    assert job.config == fields | {"forget": str(tmp_path / "mine.jsonl")}
