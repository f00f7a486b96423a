"""The leaderboard: order, seeds, empty cells with their reason, and nothing a name can break."""

import statistics

import pytest

from bench.result import MetricValue, RunResult
from bench.validity import judge
from report.leaderboard import leaderboard_table, render_markdown, render_terminal
from report.summary import summarise
from report.text import markdown, number, plain
from tests.cells import cell, failed, sae

SYNTHETIC = "synthetic nano world: numbers say nothing about real models"


def board(*cells, name="nano"):
    return summarise([RunResult(name, tuple(judge(cells)))])


def seeds(values, stem="topk_k8", **fields):
    return [
        cell("core", v, sae(f"{stem}_s{i}", init_seed=i, **fields)) for i, v in enumerate(values)
    ]


def table_rows(text: str) -> list[list[str]]:
    """Cells of every Markdown table row, headers included."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[part.strip() for part in line.strip("|").split(" | ")] for line in lines]


def test_trained_by_variant_and_l0_then_controls_then_imported():
    cells = [
        cell(info=sae("imported", role="imported", l0=1.0)),
        cell(info=sae("mean", role="control", l0=0.0)),
        cell(info=sae("topk_b", l0=8.0)),
        cell(info=sae("relu_a", l0=24.0)),
        cell(info=sae("topk_a", l0=24.0)),
        cell(info=sae("relu_b", l0=8.0)),
    ]
    order = [row.label for row in board(*cells).rows]
    assert order == ["relu_b", "relu_a", "topk_b", "topk_a", "mean", "imported"]


def test_seeds_become_one_row_with_mean_sd_and_count():
    values = [0.80, 0.84, 0.90]
    summary = board(*seeds(values, l0=8.0))
    (row,) = summary.rows
    assert (row.label, row.n) == ("topk_k8", 3)
    stat = row.values[summary.columns[0]]
    assert stat.mean == pytest.approx(statistics.mean(values))
    assert stat.sd == pytest.approx(statistics.stdev(values))
    assert "0.8467±0.0503" in render_terminal(summary)
    csv = leaderboard_table(summary)
    assert csv["core.explained_variance"][0] == pytest.approx(0.846667, abs=1e-6)
    assert csv["n"][0] == 3


def test_one_seed_has_no_sd():
    summary = board(cell("core", 0.9))
    assert "±" not in render_terminal(summary)
    assert summary.rows[0].label == "topk_k8_s0"


def test_recipes_that_differ_in_more_than_the_seed_stay_apart():
    cells = [*seeds([0.8, 0.9], "topk_k8"), *seeds([0.8, 0.9], "topk_k24")]
    assert [row.n for row in board(*cells).rows] == [2, 2]


def test_a_row_with_a_failed_seed_has_no_mean_and_says_why():
    cells = seeds([0.8, 0.9])
    cells.append(failed("core", sae("topk_k8_s2", init_seed=2), "RuntimeError: boom"))
    summary = board(*cells)
    text = render_terminal(summary)
    assert "- (1)" in text
    assert "(1) topk_k8_s2: core failed: RuntimeError: boom" in text
    assert "core failed (1 of 3)" in text
    assert len(summary.rows[0].points[summary.columns[0]]) == 2


@pytest.mark.parametrize("state", ["failed", "skipped"])
def test_an_empty_cell_shows_why_it_is_empty(state):
    cells = [cell("core", 0.9), failed("absorption", state=state, reason="too few letters")]
    summary = board(*cells)
    for text in (render_terminal(summary), render_markdown(summary)):
        assert f"absorption {state}: too few letters" in text
        assert "- (1)" in text
    assert f"absorption {state}: too few letters" in leaderboard_table(summary)["notes"][0]


def test_a_missing_value_and_a_suite_that_never_ran_show_why():
    missing = MetricValue("explained_variance", None, "higher", True, "sae_bench's formula")
    cells = [
        cell("core", metrics=(missing,)),
        cell("absorption", 0.1, sae("relu_s0")),
        cell("core", 0.9, sae("relu_s0")),
    ]
    text = render_terminal(board(*cells))
    assert "sae_bench's formula" in text
    assert "no absorption result" in text


def test_invalid_saes_have_their_own_section_with_every_reason():
    dead = sae("dead_s0", l0=0.0)
    summary = board(cell("core", 0.99), cell("core", -0.5, dead), cell("sparse_probing", 0.5, dead))
    assert [row.label for row in summary.rows] == ["topk_k8_s0"]
    for text in (render_terminal(summary), render_markdown(summary)):
        section = text.partition("Invalid: never ranked")[2]
        for reason in ("L0 is 0", "explained variance is -0.5", "every probe is at exactly 0.5"):
            assert reason in section
    csv = leaderboard_table(summary)
    assert list(csv["state"]) == ["ok", "invalid"]
    assert csv.loc[1].filter(like="core.").isna().all()


def test_an_invalid_seed_leaves_the_mean_to_the_others_and_is_counted():
    cells = [*seeds([0.8, 0.9]), cell("core", 0.1, sae("topk_k8_s2", init_seed=2, l0=0.0))]
    summary = board(*cells)
    assert (summary.rows[0].label, summary.rows[0].n) == ("topk_k8", 2)
    assert summary.rows[0].values[summary.columns[0]].mean == pytest.approx(0.85)
    assert summary.rows[0].notes == ("1 more invalid",)


def test_a_control_with_an_invalid_cell_stays_a_control():
    mean = sae("mean", role="control", l0=0.0)
    cells = [cell("core", 0.0, mean), failed("absorption", mean, "no letter", state="invalid")]
    summary = board(*cells)
    assert not summary.invalid
    assert "absorption invalid: no letter" in render_terminal(summary)


def test_headline_metrics_come_from_the_cells_with_their_direction():
    metrics = (
        MetricValue("novel", 1.0, "lower", True),
        MetricValue("detail", 2.0, "higher", False),
        MetricValue("neutral", 3.0, "none", True),
    )
    header = table_rows(render_markdown(board(cell(metrics=metrics))))[0]
    assert header == ["role", "label", "seeds", "L0", "core: novel ↓", "core: neutral", "notes"]


def test_models_and_hooks_are_never_in_one_table():
    real = sae("relu_s0", world="real", model="gemma-2-2b", hook_name="blocks.12.hook_resid_post")
    text = render_markdown(board(cell(), cell(info=real)))
    assert text.count("| role | label | seeds") == 2
    assert "## gemma-2-2b, blocks.12.hook\\_" not in text
    assert "## gemma-2-2b, blocks.12.hook_resid_post (real model)" in text


def test_a_synthetic_world_is_labelled_and_a_real_one_is_not():
    nano = board(cell())
    assert SYNTHETIC in render_markdown(nano)
    assert SYNTHETIC.upper() in render_terminal(nano).splitlines()[0]
    real = board(cell(info=sae(world="real", model="gemma-2-2b")))
    assert "synthetic" not in (render_markdown(real) + render_terminal(real)).lower()


def test_an_invalid_sae_of_a_synthetic_world_is_labelled_too():
    assert SYNTHETIC.upper() in render_terminal(board(cell(info=sae(l0=0.0))))


def test_the_same_sae_in_two_runs_is_shown_for_each():
    cells = tuple(judge([cell()]))
    summary = summarise([RunResult("a", cells), RunResult("b", cells)])
    text = render_terminal(summary)
    assert "a: topk_k8_s0" in text
    assert "b: topk_k8_s0" in text


@pytest.mark.parametrize(
    "name",
    [
        "a|b",
        "<script>x</script>",
        "[x](http://y)",
        "`x`",
        "*x*",
        "_x_",
        "![](x)",
        "a\n# b",
        "x\x1b[2J",
    ],
)
def test_a_name_cannot_break_the_markdown_or_steer_the_terminal(name):
    summary = board(cell(info=sae(name)), failed("absorption", sae(name), reason=name))
    text = render_markdown(summary)
    assert {len(row) for row in table_rows(text)} == {len(table_rows(text)[0])}
    assert "\n# b" not in text
    assert "<script>" not in text
    assert "](" not in text.replace("\\](", "").replace("\\]\\(", "")
    assert "\x1b" not in text + render_terminal(summary)


def test_ordinary_names_stay_readable_in_markdown():
    assert markdown("sae_top_1_test_accuracy (topk_k8_s0), 0.5 ± 0.1") == (
        "sae_top_1_test_accuracy (topk_k8_s0), 0.5 ± 0.1"
    )


@pytest.mark.parametrize(
    ("value", "sd", "shown"),
    [
        (0.89314, None, "0.8931"),
        (0.89314, 0.00123, "0.8931±0.0012"),
        (-0.00001, None, "0.0000"),
        (-0.785, None, "-0.7850"),
        (1234.567, None, "1234.6"),
    ],
)
def test_numbers_are_shown_with_four_digits(value, sd, shown):
    assert number(value, sd) == shown


def test_plain_text_is_one_line():
    assert plain(" a\tb\r\nc\x00 ") == "a b c?"


def test_an_empty_run_has_an_empty_leaderboard():
    summary = board()
    assert render_markdown(summary).startswith("# Leaderboard")
    assert leaderboard_table(summary).empty
