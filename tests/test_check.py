"""The conformance kit: what works passes, and each mistake is found by the point about it."""

import json

import pytest
from click.testing import CliRunner

from bench import preflight, registry
from bench.check.kit import check, preflight_problems
from bench.check.report import Report
from bench.cli import main
from bench.config import RunConfig, TrainConfig, VariantConfig
from bench.errors import UserError
from tests.mutants import EXPERIMENTS, FAILING, GOOD, WARNING, Mutant

SLOW = ("memory_latents", "knob")
"""Points that a quick check leaves out."""


@pytest.fixture
def checked(plugins, tmp_path):
    """The report on a plugin file with this source."""

    def run(source: str, *, quick: bool = True) -> Report:
        return check(str(plugins("mine.py", source)), quick=quick)

    return run


def by_status(report: Report, status: str) -> dict[str, str]:
    return {f.point: f.message for f in report.findings if f.status == status}


def test_a_plugin_without_mistakes_passes_every_point(checked):
    report = checked(GOOD, quick=False)
    assert {f.status for f in report.findings} == {"pass"}, "\n".join(report.lines())
    assert {f.point for f in report.findings} == set(FAILING) | set(WARNING)


def test_a_quick_check_leaves_out_the_slow_points(checked):
    points = {f.point for f in checked(GOOD).findings}
    assert points == (set(FAILING) | set(WARNING)) - set(SLOW)


@pytest.mark.parametrize("point", FAILING)
def test_each_point_is_failed_by_its_own_mistake_alone(checked, point):
    report = checked(FAILING[point].source, quick=point not in SLOW)
    failed = by_status(report, "fail")
    assert list(failed) == [point], "\n".join(report.lines())
    assert FAILING[point].says in failed[point]
    assert all(f.fix for f in report.failed)


@pytest.mark.parametrize("point", WARNING)
def test_what_may_be_on_purpose_is_a_warning(checked, point):
    report = checked(WARNING[point].source)
    assert report.is_ok, "\n".join(report.lines())
    assert WARNING[point].says in by_status(report, "warn")[point]


def test_what_core_takes_from_the_weights_is_tried(checked, monkeypatch):
    weights = {"encoder_bias": [0.0, float("nan")]}
    monkeypatch.setattr("bench.check.saved_points.weight_metrics", lambda sae: weights)
    failed = by_status(checked(GOOD), "fail")
    assert list(failed) == ["suites"]
    assert "encoder_bias" in failed["suites"]


@pytest.mark.parametrize("what", EXPERIMENTS)
def test_each_experiment_that_never_trained_is_explained(checked, what):
    point, mutant = EXPERIMENTS[what]
    report = checked(mutant.source)
    assert mutant.says in by_status(report, "fail")[point], "\n".join(report.lines())


def test_what_is_exported_must_survive_a_checkpoint_too(checked):
    """Kept in a plain attribute, it is lost when training goes on in another process."""
    count = "        f = self.encode(batch.x)\n        self.n = getattr(self, 'n', 0) + 1\n"
    shift = "        weights['b_dec'] += 1e-3 * self.n\n        return Exported("
    source = GOOD.replace("        f = self.encode(batch.x)\n", count)
    failed = by_status(checked(source.replace("        return Exported(", shift)), "fail")
    assert "exported b_dec ends up different" in failed["resume"]


def test_finish_may_use_only_what_a_checkpoint_holds(checked):
    """The last step may have been taken in another process."""
    after = "        ops.normalise_rows_(self.W_dec)\n"
    finish = (
        "        self.last = batch.x.abs().mean()\n\n    def finish(self, stream):\n"
        "        self.b_dec.add_(0.01 * getattr(self, 'last', 0.0))\n"
    )
    failed = by_status(checked(GOOD.replace(after, after + finish)), "fail")
    assert "b_dec ends up different" in failed["resume"] and "step 24 of 24" in failed["resume"]


def test_a_mistake_is_told_with_its_file_and_line(checked, tmp_path):
    source = GOOD.replace("        f = self.encode(batch.x)", "        f = self.encode(batch.y)")
    message = by_status(checked(source), "fail")["losses"]
    assert message.startswith(f"{tmp_path / 'mine.py'}:27: AttributeError")


def test_what_depends_on_a_failed_point_is_skipped_with_the_reason(checked):
    report = checked(FAILING["build"].source)
    assert by_status(report, "skip")["losses"] == "because of build"


def test_a_buffer_that_only_some_settings_have_is_no_mistake(checked):
    spare = "\n    def spare(self):\n        self.register_buffer('gate', self.b_enc)\n"
    report = checked(f"{GOOD}{spare}        return self.gate\n")
    assert report.is_ok, "\n".join(report.lines())


def test_random_draws_of_rows_are_no_order(checked):
    term = "0.1 * f[torch.randperm(len(f))[:32]].pow(2).sum(-1).mean()"
    mutant = Mutant(
        (("self.cfg.l1 * f.sum(-1).mean(),", f"self.cfg.l1 * f.sum(-1).mean() + {term},"),), ""
    )
    assert checked(mutant.source).is_ok


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nx = torch.nn.functional.relu\n",
        "def f(a, *b, **d):\n    global e\n    e = [g for g in b]\n    return a, d, e\nprint(e)\n",
        "class A:\n    x = 1\n    y = [x]\n    def f(self): return __class__, self.x\n",
        "from torch import *\nprint(whatever)\n",
        "import numpy as np\nnp = None\nprint(np.nothing)\n",
        "lambda x: x\n",
        "def f():\n    try:\n        pass\n    except ValueError as error:\n        print(error)\n",
    ],
)
def test_names_that_exist_are_not_reported(source):
    from bench.check.names import missing

    assert missing(source) == []


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("def f():\n    return [y for x in range(3)]\n", 2, "name 'y' is not defined"),
        ("import torch\ntorch.nn.functionl\n", 2, "torch.nn has no 'functionl'"),
        ("from bench import ops\ndef f(): ops.keep_topk()\n", 2, "bench.ops has no 'keep_topk'"),
        ("from bench.ops import keep_topk\n", 1, "bench.ops has no 'keep_topk'"),
        ("def f():\n    import no_such\n", 2, "no module named 'no_such'"),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import json\n"
            "def f(x: 'json'): return json.dumps(x)\n",
            4,
            "name 'json' is imported for type checkers only",
        ),
    ],
)
def test_names_that_do_not_exist_are_found_without_running_them(source, line, says):
    from bench.check.names import missing

    assert missing(source) == [(line, says)]


def test_a_pass_is_remembered_until_the_source_changes(plugins, tmp_path, monkeypatch):
    path, runs = plugins("variants/kept.py", GOOD), []

    def counted(*args, **kwargs):
        runs.append(1)
        return original(*args, **kwargs)

    from bench.check import kit

    original = kit.check_variant
    monkeypatch.setattr(kit, "check_variant", counted)
    for _ in range(2):
        assert list(preflight_problems("kept", {}, tmp_path)) == []
    assert len(runs) == 1
    path.write_text(FAILING["names"].source)
    for _ in range(2):  # a failure is never remembered
        (problem,) = preflight_problems("kept", {}, tmp_path)
        assert problem.startswith("variant 'kept': names: ") and "fix: " in problem
    assert len(runs) == 3


def test_the_settings_of_a_run_are_the_ones_that_are_rehearsed(plugins, tmp_path):
    field = 'way: str = "plain"\n        """Of two."""\n        l1: float'
    used = '        assert self.cfg.way == "plain", "odd"\n        f = self.encode(batch.x)'
    source = GOOD.replace("l1: float", field, 1).replace("        f = self.encode(batch.x)", used)
    plugins("variants/chosen.py", source)
    assert list(preflight_problems("chosen", {"way": "plain"}, tmp_path)) == []
    (problem,) = preflight_problems("chosen", {"way": "other"}, tmp_path)
    assert "losses: " in problem and "AssertionError: odd" in problem


def test_a_knob_for_other_activations_is_no_reason_to_refuse_a_run(plugins, tmp_path):
    plugins("variants/knobby.py", GOOD)
    assert list(preflight_problems("knobby", {"l1": 1e6}, tmp_path)) == []


def test_a_run_is_refused_while_a_variant_of_it_would_fail_when_saved(plugins, tmp_path):
    _, mutant = EXPERIMENTS["name error in a property that only saving reads"]
    plugins("variants/doomed.py", mutant.source)
    config = RunConfig(
        name="mine",
        model="nano",
        hook_name="blocks.2.hook_resid_post",
        train=TrainConfig(d_sae=64, tokens=100_000),
        variants=(VariantConfig("doomed"),),
    )
    with pytest.raises(UserError, match="variant 'doomed': names: .*'alpha' is not defined; fix: "):
        preflight.check(config, tmp_path / "run")


def test_the_command_exits_with_the_outcome(plugins):
    path = str(plugins("mine.py", FAILING["names"].source))
    done = CliRunner().invoke(main, ["check", path, "--quick", "--json"])
    assert done.exit_code == 1
    told = json.loads(done.output)
    assert told["ok"] is False and told["name"] == "mine"
    assert [f["point"] for f in told["findings"] if f["status"] == "fail"] == ["names"]
    registry.add_file(plugins("mine.py", GOOD))
    assert CliRunner().invoke(main, ["check", "mine", "--quick"]).exit_code == 0


def test_what_is_no_plugin_is_refused(plugins):
    plugins("variants/mine.py", GOOD)
    with pytest.raises(UserError, match="unknown variant 'mime': did you mean 'mine'"):
        check("mime")
    with pytest.raises(UserError, match="is not a Python file"):
        check("none.py")
    with pytest.raises(UserError, match="broken.py:1: SyntaxError"):
        check(str(plugins("broken.py", "def f(:")))
