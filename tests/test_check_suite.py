"""A suite's rehearsal: every SAE gets its values, with every engine, wherever in the list."""

import pytest

from bench.check.kit import check

GOOD = '''
from bench.suite import Metric, Scored, Suite
from bench.variant import NoConfig


class Norms(Suite):
    """Mean norm of the encoder's columns."""

    Config = NoConfig
    metrics = (Metric("norm", "higher", 0.0, headline=True, summary="mean norm of W_enc"),)
    side = "base"
    engines = ("reference", "fast")
    rehearsal = {}

    def run(self, ctx, saes):
        print("suites may talk")
        for handle in saes:
            norm = handle.sae.W_enc.norm(dim=0).mean().item()
            yield Scored(handle.label, {"norm": norm}, [], None)
'''


@pytest.fixture
def checked(plugins):
    """Point -> what it says of a suite with these changes, of those that fail; and all passed."""

    def run(*changes: tuple[str, str]) -> dict[str, str]:
        source = GOOD
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        report = check(str(plugins("norms.py", source)))
        return {f.point: f.message for f in report.findings if f.status == "fail"}

    return run


def test_a_suite_that_answers_for_every_sae_passes(checked, capsys):
    assert checked() == {}
    assert "suites may talk" not in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_an_sae_left_out_is_seen_with_either_engine(checked, engine):
    some = f"saes[ctx.engine == '{engine}':]"
    found = checked(("for handle in saes", f"for handle in {some}"))
    assert list(found) == ["answers"]
    assert found["answers"].startswith(f"{engine}: gave results for silent, again, not for each")


def test_a_value_out_of_range_is_seen(checked):
    found = checked(('{"norm": norm}', '{"norm": -norm}'))
    assert list(found) == ["answers"] and "norm of 'first' is -1.0" in found["answers"]


def test_a_failure_on_one_sae_is_told(checked):
    change = "yield Failed(handle.label, ValueError('no norm')) if handle.label == 'silent' else "
    found = checked(("yield ", change), ("import Metric", "import Failed, Metric"))
    assert list(found) == ["answers"]
    assert found["answers"].startswith("reference: failed on 'silent': no norm")


def test_an_order_effect_is_seen(checked):
    found = checked(
        ("for handle in saes:", "for i, handle in enumerate(saes):"), ("norm}", "norm + i}")
    )
    assert list(found) == ["position"] and found["position"].startswith("reference: norm is 1.0")


@pytest.mark.parametrize("suite", ["core", "sparse_probing"])
def test_shipped_suites_with_a_rehearsal_pass_it(suite):
    report = check(suite)
    assert {f.status for f in report.findings} == {"pass"}, "\n".join(report.lines())
    assert {"answers", "position"} <= {f.point for f in report.findings}
