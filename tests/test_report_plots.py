"""The whole report from a run folder: files, plots that show what is there, and no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.importer import import_path
from bench.result import RunResult
from bench.validity import judge
from report.build import build_report
from report.plots import _figure, draw_plots
from report.summary import summarise
from report.table import RESULT_COLUMNS, read_table
from tests.cells import HEADLINES, cell, failed, sae, save_run

FIXTURES = Path(__file__).parent / "fixtures"
PNG = b"\x89PNG"


def run_cells():
    """A variant at two sparsities and two seeds, and two controls, on all suites."""
    saes = [
        sae(f"topk_k{k}_s{seed}", init_seed=seed, l0=float(k)) for k in (8, 24) for seed in (0, 1)
    ]
    saes.append(sae("random_l8", role="control", l0=8.0, init_seed=None))
    saes.append(sae("mean", role="control", l0=0.0, init_seed=None))
    return [cell(suite, 0.6, info) for info in saes for suite in HEADLINES]


def panel_of(cells, column=0):
    """The drawn axes of one headline metric."""
    summary = summarise([RunResult("nano", tuple(judge(cells)))])
    setting = summary.settings[0]
    figure = _figure([summary.columns[column]], list(summary.rows), setting)
    return figure.axes[0], figure


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = save_run(tmp_path_factory.mktemp("results") / "nano", run_cells())
    import_path(FIXTURES, folder)
    return build_report([folder], folder)


def test_every_file_of_the_report_is_written(report):
    folder = report.results.parent
    for name in ("results.csv", "units.csv", "leaderboard.md", "leaderboard.csv"):
        assert (folder / name).stat().st_size > 0
    names = {path.stem for path in report.plots}
    assert names == {"overview"} | {f"{s}-{m}" for s in HEADLINES for m, _ in HEADLINES[s]}
    assert all(path.read_bytes().startswith(PNG) for path in report.plots)
    assert all(path.stat().st_size < 1_000_000 for path in report.plots)


def test_the_imported_untrained_sae_is_invalid_in_every_table(report):
    table = read_table(report.results, RESULT_COLUMNS)
    rows = table[table["role"] == "imported"]
    assert set(rows["state"]) == {"invalid"}
    assert rows["value"].isna().all()
    text = report.leaderboard.read_text()
    for reason in ("L0 is 0", "variance is -0.79", "exactly 0.5", "layer is 5", "19 in layer"):
        assert reason in text
        assert reason in report.terminal


def test_every_sae_is_in_results_csv(report):
    table = read_table(report.results, RESULT_COLUMNS)
    assert len(table) == 6 * 6 + 2 + 1  # SAEs x headline metrics, imported core, imported probing
    assert table["cell_key"].nunique() == 6 * 4 + 2


def test_the_same_report_is_the_same_file(report, tmp_path):
    again = build_report([report.results.parent], tmp_path)
    assert again.results.read_bytes() == report.results.read_bytes()
    assert again.plots[0].read_bytes() == report.plots[0].read_bytes()


def test_plots_of_an_earlier_report_do_not_stay(tmp_path):
    stale = tmp_path / "plots" / "old.png"
    stale.parent.mkdir()
    stale.write_bytes(PNG)
    draw_plots(summarise([]), tmp_path / "plots")
    assert not stale.exists()


def test_points_are_seeds_and_the_line_goes_through_their_means():
    cells = [
        cell("core", value, sae(f"topk_k{k}_s{seed}", init_seed=seed, l0=k))
        for k, values in ((8.0, (0.5, 0.7)), (24.0, (0.8, 0.9)))
        for seed, value in enumerate(values)
    ]
    panel, _ = panel_of(cells)
    assert panel.get_xscale() == "log"
    points = panel.collections[0].get_offsets().tolist()
    assert sorted(points) == [[8.0, 0.5], [8.0, 0.7], [24.0, 0.8], [24.0, 0.9]]
    (line,) = panel.get_lines()
    assert list(line.get_xdata()) == [8.0, 24.0]
    assert list(line.get_ydata()) == pytest.approx([0.6, 0.85])


def test_a_control_without_latents_is_a_line_across_and_others_stand_at_their_l0():
    controls = [
        cell("core", 0.3, sae("random_l8", role="control", l0=8.0)),
        cell("core", 0.0, sae("mean", role="control", l0=0.0)),
    ]
    panel, _ = panel_of([cell("core", 0.9), *controls])
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert list(lines["mean (control)"].get_xdata()) == [0, 1]  # the whole width
    assert list(lines["random (control)"].get_xdata()) == [8.0]


def test_the_axis_says_which_way_is_better_and_the_title_which_world():
    panel, figure = panel_of(run_cells(), column=3)
    assert panel.get_ylabel() == "mean_absorption_fraction\n(lower is better)"
    assert figure.get_suptitle().endswith(
        "synthetic nano world: numbers say nothing about real models"
    )


def test_what_is_not_ok_is_not_drawn():
    cells = [
        cell("core", 0.9),
        failed("core", sae("relu_s0")),
        cell("core", 0.9, sae("dead_s0", l0=0.0)),
    ]
    panel, _ = panel_of(cells)
    assert [line.get_label() for line in panel.get_lines()] == ["topk"]


@pytest.mark.parametrize("variant", ["$x_{$", "_hidden", "a\nb\x1b", "très"])
def test_any_variant_name_can_be_drawn_and_is_in_the_legend(tmp_path, variant):
    panel, figure = panel_of([cell("core", 0.9, sae(variant=variant))])
    figure.savefig(tmp_path / "x.png")
    assert len(panel.get_legend_handles_labels()[1]) == 1


def test_settings_have_their_own_plots(tmp_path):
    real = sae("relu_s0", world="real", model="a/b c", hook_name="blocks.1.hook_resid_post")
    summary = summarise([RunResult("nano", (cell("core", 0.9), cell("core", 0.9, real)))])
    names = {path.name for path in draw_plots(summary, tmp_path)}
    assert {"1-a_b_c-overview.png", "2-nano-overview.png"} <= names
    assert len(names) == 2 * (1 + len(HEADLINES["core"]))


def test_a_report_needs_a_run_folder(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        build_report([tmp_path], tmp_path)


def test_a_folder_given_twice_counts_once(tmp_path):
    folder = save_run(tmp_path / "nano", [cell()])
    assert build_report([folder, tmp_path / "." / "nano"], folder).terminal.count("topk_k8_s0") == 1


def test_a_report_is_drawn_without_torch_and_leaves_the_backend_alone(tmp_path):
    save_run(tmp_path / "nano", [cell()])
    code = (
        "import sys; from pathlib import Path; from report.build import build_report;"
        f"build_report([Path({str(tmp_path / 'nano')!r})], Path({str(tmp_path / 'out')!r}));"
        "heavy = {'torch', 'transformers', 'sae_lens', 'sae_bench'} & set(sys.modules);"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "leaderboard.md").exists()
