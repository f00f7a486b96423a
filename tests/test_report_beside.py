"""What stands beside a headline: sae_bench's own value, and why a number is what it is."""

from dataclasses import replace

from bench.result import MetricValue, RunResult
from report.leaderboard import leaderboard_table, render_markdown
from report.summary import summarise
from tests.cells import cell, sae

NOTE = "gate failed: no setting keeps side accuracy 0.99 (at most 0.953)"


def unlearned(label, reason=""):
    metrics = (
        MetricValue("unlearning_score", 0.0 if reason else 0.7, "higher", True, reason),
        MetricValue("saebench060_unlearning_score", 0.5, "higher", False),
    )
    return replace(cell("unlearning", info=sae(label)), metrics=metrics)


def test_sae_benchs_score_and_the_reason_are_shown_beside_ours_and_the_row_is_complete():
    cells = (unlearned("topk_k8_s0"), unlearned("relu_s0", NOTE))
    summary = summarise([RunResult("run", cells)])
    names = [column.metric for column in summary.columns]
    assert names == ["unlearning_score", "saebench060_unlearning_score"]
    (line,) = (x for x in render_markdown(summary).splitlines() if "relu" in x)
    assert "0.0000 | 0.5000 | unlearning: gate failed |" in line
    table = leaderboard_table(summary).set_index("label")
    assert table.loc["relu_s0", "state"] == table.loc["topk_k8_s0", "state"] == "ok"
    assert table.loc["relu_s0", "notes"] == "unlearning: gate failed"
