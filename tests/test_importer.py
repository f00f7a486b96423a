"""sae_bench's result files become cells, the wrong numbers under their own name, or are refused."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.importer import import_path
from bench.result import STORE, load_run
from bench.saebench_json import FORMATS
from tests.cells import cell, sae, save_run

FIXTURES = Path(__file__).parent / "fixtures"
CORE = FIXTURES / "untrained_sae_core_eval_results.json"
PROBING = FIXTURES / "untrained_sae_sparse_probing_eval_results.json"


def result(kind: str, metrics: dict, **fields) -> dict:
    """A healthy sae_bench result of one SAE."""
    return {
        "eval_type_id": kind,
        "eval_config": {"model_name": "gemma-2-2b", "random_seed": 7, "probe_test_set_size": 1000},
        "eval_id": "1",
        "datetime_epoch_millis": 1,
        "eval_result_metrics": metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": "abc",
        "sae_lens_id": "blocks.12.hook_resid_post__trainer_0",
        "sae_lens_release_id": "some_release",
        "sae_lens_version": "6.0",
        "sae_cfg_dict": {
            "architecture": "TopK",
            "d_in": 2304,
            "d_sae": 16384,
            "metadata": {"model_name": "gemma-2-2b", "hook_name": "blocks.12.hook_resid_post"},
        },
        **fields,
    }


def core(**changed) -> dict:
    """A healthy core result as sae_bench 0.6.0 writes it; `changed` are reconstruction metrics."""
    quality = {"explained_variance": 0.9, "explained_variance_legacy": 0.8, "mse": 3, "cossim": 0.9}
    return result(
        "core",
        {
            "model_behavior_preservation": {"kl_div_score": 0.98, "kl_div_with_sae": 0.1},
            "model_performance_preservation": {"ce_loss_score": 0.99},
            "reconstruction_quality": quality | changed,
            "shrinkage": {"l2_ratio": 0.95},
            "sparsity": {"l0": 40.5, "l1": 100.0},
            "misc_metrics": {"frac_alive": 0.9},
        },
    )


def probing(top_1: object = 0.75, **fields) -> dict:
    metrics = {
        "llm": {"llm_test_accuracy": 0.95, "llm_top_1_test_accuracy": 0.65},
        "sae": {"sae_test_accuracy": 0.93, "sae_top_1_test_accuracy": top_1},
    }
    return result("sparse_probing", metrics, **fields)


def imported(tmp_path: Path, *raws: dict):
    """The cells that these results become."""
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for i, raw in enumerate(raws):
        (folder / f"{i}.json").write_text(json.dumps(raw))
    return import_path(folder, tmp_path / "results" / "run").cells


def values(one) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in one.metrics}


def test_the_untrained_sae_is_invalid_and_each_reason_is_named(tmp_path):
    import_path(FIXTURES, tmp_path / "run")
    core_cell, probing_cell = load_run(tmp_path / "run").cells
    assert {core_cell.state, probing_cell.state} == {"invalid"}
    assert "L0 is 0" in core_cell.reason
    assert "explained variance is -0.79" in core_cell.reason
    assert "training tokens are -100000" in core_cell.reason
    assert "every probe is at exactly 0.5" in probing_cell.reason
    assert "training steps are 0" in probing_cell.reason
    assert "layer is 5 in sae_cfg_dict.hook_layer" in probing_cell.reason
    assert "but 19 in layer" in probing_cell.reason


def test_a_healthy_sae_is_ok_although_its_training_tokens_are_not_stated(tmp_path):
    raw = core()
    raw["sae_cfg_dict"]["training_tokens"] = -100_000
    (one,) = imported(tmp_path, raw)
    assert (one.state, one.reason) == ("ok", "")
    assert one.sae.train_tokens is None


def test_what_is_known_of_the_sae_is_taken_over(tmp_path):
    (one,) = imported(tmp_path, core())
    assert one.sae.role == "imported"
    assert one.sae.label == "some_release/blocks.12.hook_resid_post__trainer_0"
    assert (one.sae.variant, one.sae.world, one.sae.model) == ("topk", "real", "gemma-2-2b")
    assert (one.sae.hook_name, one.sae.d_in) == ("blocks.12.hook_resid_post", 2304)
    assert (one.sae.l0, one.sae.init_seed) == (40.5, None)


def test_a_result_of_the_embedded_model_stays_in_its_world(tmp_path):
    raw = core()
    raw["sae_cfg_dict"]["metadata"]["model_name"] = "nano"
    (one,) = imported(tmp_path, raw)
    assert one.sae.world == "nano"


def test_wrong_numbers_keep_the_name_of_sae_bench(tmp_path):
    (one,) = imported(tmp_path, core())
    found = values(one)
    assert found["saebench060_explained_variance"] == 0.9
    assert found["saebench060_explained_variance_legacy"] == 0.8
    assert found["saebench060_mse"] == 3
    assert found["saebench060_kl_div_score"] == 0.98
    assert found["explained_variance"] is None
    assert not {"mse", "kl_div_score", "kl_div_with_sae"} & set(found)
    headlines = {m.name: m.reason for m in one.metrics if m.headline}
    assert set(headlines) == {"ce_loss_score", "explained_variance"}
    assert "another" in headlines["explained_variance"]


def test_an_older_file_has_the_legacy_formula_under_the_plain_name(tmp_path):
    found = values(import_path(CORE, tmp_path / "run").cells[0])
    assert found["saebench060_explained_variance_legacy"] == -0.78515625
    assert "saebench060_explained_variance" not in found


def test_minus_one_is_a_missing_value(tmp_path):
    raw = core()
    raw["eval_result_metrics"]["model_behavior_preservation"]["kl_div_score"] = -1
    (one,) = imported(tmp_path, raw)
    (kl,) = [metric for metric in one.metrics if metric.name == "saebench060_kl_div_score"]
    assert kl.value is None  # and it is not computed from the parts that the file has
    assert "sae_bench wrote -1" in kl.reason
    assert not [m for m in one.metrics if "kl_div" in m.name and m.value == -1]
    assert one.state == "ok"


def test_a_nan_makes_the_sae_invalid(tmp_path):
    (one,) = imported(tmp_path, core(cossim=float("nan")))
    assert (one.state, one.reason) == ("invalid", "cossim is NaN or infinite")


def test_a_kl_that_overflowed_is_missing_and_says_nothing_of_the_sae(tmp_path):
    raw = core()
    raw["eval_result_metrics"]["model_behavior_preservation"]["kl_div_score"] = float("-inf")
    (one,) = imported(tmp_path, raw)
    assert one.state == "ok"
    assert values(one)["saebench060_kl_div_score"] is None


def test_probes_by_class_become_units(tmp_path):
    by_class = {"LabHC/set1_results": {"sae_top_1_test_accuracy": {"0": 0.7, "1": 0.8}}}
    (one,) = imported(tmp_path, probing(eval_result_unstructured=by_class))
    assert [(u.unit_kind, u.unit, u.value, u.n) for u in one.units] == [
        ("class", "LabHC/set1/0", 0.7, 1000),
        ("class", "LabHC/set1/1", 0.8, 1000),
    ]
    assert one.eval_seed == 7


def test_probes_without_classes_become_units_by_data_set(tmp_path):
    (one,) = import_path(PROBING, tmp_path / "run").cells
    units = {u.unit: u.value for u in one.units if u.metric == "llm_top_1_test_accuracy"}
    assert len(units) == 8
    assert units["fancyzhx/ag_news"] == 0.733


def test_absorption_and_unlearning_are_read(tmp_path):
    absorption = result(
        "absorption_first_letter",
        {
            "mean": {
                "mean_absorption_fraction_score": 0.1,
                "mean_full_absorption_score": 0.05,
                "mean_num_split_features": 1.5,
            }
        },
        eval_result_details=[
            {
                "first_letter": "a",
                "mean_absorption_fraction": 0.2,
                "full_absorption_rate": 0.1,
                "num_probe_true_positives": 50,
            }
        ],
    )
    unlearning = result("unlearning", {"unlearning": {"unlearning_score": 0.3}})
    first, second = imported(tmp_path, absorption, unlearning)
    assert values(first)["mean_full_absorption"] == 0.05
    assert [(u.metric, u.unit, u.value, u.n) for u in first.units] == [
        ("mean_absorption_fraction", "a", 0.2, 50),
        ("mean_full_absorption", "a", 0.1, 50),
    ]
    assert first.eval_seed is None  # sae_bench stores a seed here but never uses it
    assert values(second) == {"saebench060_unlearning_score": 0.3, "unlearning_score": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_type_id": "scr"}, "unknown eval_type_id 'scr'"),
        ({"eval_type_id": ["core"]}, "unknown eval_type_id"),
        ({"eval_result_metrics": None}, "eval_result_metrics=None: must be a mapping"),
        ({"eval_result_metrics": {"sae": 3, "llm": {}}}, "eval_result_metrics.sae=3"),
        ({"eval_result_metrics": {"sae": {}}}, "not a sparse_probing result"),
        ({"eval_config": []}, "eval_config"),
        ({"eval_result_details": [{"x_top_1": 3}]}, "dataset_name"),
        ({"sae_cfg_dict": None}, "hook_name is missing"),
        ({"sae_cfg_dict": "topk"}, "sae_cfg_dict='topk': must be a mapping"),
        ({"sae_lens_release_id": None, "sae_lens_id": "custom_sae"}, "sae_lens_release_id"),
        ({"sae_lens_release_id": 3}, "must be text"),
        ({"layer": "12"}, "layer='12': must be a whole number"),
        ({"training_steps": float("inf")}, "OverflowError"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(probing() | change))
    with pytest.raises(UserError, match="(?s)" + message.replace("[", r"\[")) as caught:
        import_path(path, tmp_path / "run")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [1.5, -0.2, "0.7", True, [0.7]])
def test_an_impossible_accuracy_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="sae_top_1_test_accuracy="):
        imported(tmp_path, probing(value))


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"a": 1} {'])
def test_a_file_that_is_not_json_is_refused(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match="is not JSON"):
        import_path(tmp_path / "bad.json", tmp_path / "run")


def test_a_bad_file_among_good_ones_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError):
        imported(tmp_path, core(), probing(2))
    assert not (tmp_path / "results").exists()


def test_other_files_of_a_folder_are_skipped_with_a_reason(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(core()))
    (folder / "b.json").write_text('{"eval_type_id": "scr"}')
    (folder / "c.json").write_text("[1]")
    done = import_path(folder, tmp_path / "run")
    assert len(done.cells) == 1
    assert len(done.skipped) == 2
    assert "scr" in done.skipped[0]


def test_a_folder_without_results_or_a_missing_path_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no result"):
        import_path(tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match="does not exist"):
        import_path(tmp_path / "missing", tmp_path / "run")


def test_an_import_adds_to_a_run_and_can_be_repeated(tmp_path):
    folder = save_run(tmp_path / "run", [cell()])
    for _ in range(2):
        import_path(FIXTURES, folder)
    run = load_run(folder)
    assert run.name == "run"
    assert [c.sae.role for c in run.cells] == ["trained", "imported", "imported"]
    assert all(path.parent == tmp_path / STORE for path in run.folders)


def test_a_new_result_of_the_same_sae_replaces_the_old_one(tmp_path):
    imported(tmp_path, probing(0.7))
    imported(tmp_path, probing(0.8))
    (one,) = load_run(tmp_path / "results" / "run").cells
    assert values(one)["sae_top_1_test_accuracy"] == 0.8


def test_copies_count_once_and_contradicting_files_are_refused(tmp_path):
    assert len(imported(tmp_path, core(), core())) == 1
    with pytest.raises(UserError, match="import only one of them"):
        imported(tmp_path, core(), core(mse=4))


def test_an_import_cannot_take_the_name_of_a_trained_sae(tmp_path):
    label = "some_release/blocks.12.hook_resid_post__trainer_0"
    save_run(tmp_path / "results" / "run", [cell(info=sae(label))])
    with pytest.raises(UserError, match="import into another folder"):
        imported(tmp_path, core())


@pytest.mark.parametrize(
    ("kind", "schema", "metrics"),
    [
        ("core", "core", {"reconstruction_quality": {"explained_variance_legacy": 1}}),
        ("sparse_probing", "sparse_probing", {"sae": {"sae_top_5_test_accuracy": 1}, "llm": {}}),
        ("absorption_first_letter", "absorption_first_letter", {}),
        ("unlearning", "unlearning", {}),
    ],
)
def test_every_metric_is_where_the_schema_of_sae_bench_has_it(kind, schema, metrics):
    spec = find_spec("sae_bench")  # its schemas are files: nothing is imported
    assert spec and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    (path,) = root.rglob(f"eval_output_schema_{schema}.json")
    defs = json.loads(path.read_text())
    categories = defs["$defs"][defs["properties"]["eval_result_metrics"]["$ref"].split("/")[-1]]
    for source in FORMATS[kind].sources(metrics):
        category, key = source.path.split(".")
        of = categories["properties"][category]
        reference = of.get("$ref") or of["allOf"][0]["$ref"]
        assert key in defs["$defs"][reference.split("/")[-1]]["properties"], source.path
