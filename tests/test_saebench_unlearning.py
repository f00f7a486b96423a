"""Traps of sae_bench 0.6.0's unlearning, each shown in its own code, and what we do."""

import json
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.context import patched, sae_bench_on
from bench.errors import UserError
from bench.strict import build
from bench.unlearning.config import PROMPT_NAME
from bench.unlearning.corpora import reading_corpora
from bench.unlearning.crossfit import CHANCE, cross_fitted
from bench.unlearning.grid import Setting, saebench_score
from bench.unlearning.questions import TooFewQuestions, asked, check_enough
from bench.unlearning.reference import Reference
from suites.unlearning import UnlearningSuite
from tests import tiny
from tests.saebench import quiet

CFG = UnlearningSuite.Config(dataset_names=("wmdp-bio", "human_aging"), dataset_size=4, seq_len=32)


class Stop(Exception):
    """Ends a call of sae_bench where the test has seen enough."""


def stop(*args: Any, **kwargs: Any) -> None:
    """In place of a function of sae_bench that must not be reached, or whose reaching is it."""
    raise Stop


def sae_bench_config(name: str = "gemma-2-2b-it") -> Any:
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig

    return UnlearningEvalConfig(model_name=name, llm_dtype="float32", llm_batch_size=2)


def run_eval(name: str, *saes: Any, **kwargs: Any) -> Any:
    """sae_bench's run_eval with a model that is never loaded."""
    import sae_bench.evals.unlearning.main as unlearning
    from transformer_lens import HookedTransformer

    loader = kwargs.pop("loader", lambda *a, **k: SimpleNamespace())
    with patched(HookedTransformer, "from_pretrained_no_processing", loader), quiet():
        return unlearning.run_eval(sae_bench_config(name), list(saes), "cpu", **kwargs)


def metrics_file(folder: Path, multiplier: int, hazard: float) -> None:
    """What sae_bench writes for one setting that keeps all side answers."""
    right = {"wmdp-bio": hazard, "human_aging": 1.0}
    answers: dict[str, Any] = {
        name: {
            "mean_correct": share,
            "total_correct": round(10 * share),
            "is_correct": np.ones(10),
        }
        for name, share in right.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    name = f"clamp_multiplier{multiplier}_nfeatures10_layer1_retainthres0.01.pkl"
    (folder / name).write_bytes(pickle.dumps(answers | {"ablate_params": {}}))


def test_sae_bench_reuses_frequencies_of_another_sae_even_when_forced(tmp_path):
    from sae_bench.evals.unlearning.utils import eval as theirs

    sparsities = tmp_path / "a_custom_sae/results/sparsities"
    sparsities.mkdir(parents=True)
    for kind in ("forget", "retain"):  # of an SAE that had this name before
        (sparsities / f"feature_sparsity_{kind}.txt").write_text("0.5\n0.25\n")
    read = []
    with (
        patched(theirs, "run_metrics_calculation", lambda *args: read.append(args[3].tolist())),
        quiet(),
    ):
        model, sae = SimpleNamespace(), SimpleNamespace()  # neither is asked for anything
        theirs.run_eval_single_sae(
            model, sae, sae_bench_config(), str(tmp_path), "a_custom_sae", True
        )
    torch.set_grad_enabled(True)
    assert read == [[0.5, 0.25]]


def test_sae_bench_scores_results_of_older_settings_that_lie_around(tmp_path):
    from sae_bench.evals.unlearning.main import get_metrics_df, get_unlearning_scores

    metrics_file(tmp_path, 25, hazard=0.9)
    assert get_unlearning_scores(get_metrics_df(tmp_path)) == pytest.approx(0.1)
    metrics_file(tmp_path, 400, hazard=0.2)  # of a run with another grid
    assert get_unlearning_scores(get_metrics_df(tmp_path)) == pytest.approx(0.8)


def test_ours_hands_it_an_empty_folder_of_its_own_every_time(tmp_path):
    import sae_bench.evals.unlearning.main as unlearning

    ctx = tiny.context(tmp_path)
    engine = Reference(ctx, CFG, [])
    (engine.folder / "data").mkdir(parents=True)
    own = ctx.work / "unlearning" / "a"
    stale = own / "unlearning" / PROMPT_NAME / "a_custom_sae" / "results"
    metrics_file(stale / "metrics", 400, hazard=0.0)
    (stale / "sparsities").mkdir()
    (stale / "sparsities/feature_sparsity_forget.txt").write_text("1\n")
    neighbour = ctx.work / "unlearning" / "b"
    metrics_file(neighbour, 25, hazard=0.0)
    seen: dict[str, Any] = {}

    def look(*args: Any, **kwargs: Any) -> None:
        files = [f.name for f in Path(kwargs["artifacts_path"]).rglob("*") if f.is_file()]
        seen.update(kwargs, files=files)
        raise Stop

    with patched(unlearning, "run_eval", look), pytest.raises(Stop):
        engine.tried(tiny.handle("a"))
    assert seen["files"] == []
    assert Path(seen["artifacts_path"]) == own
    assert not seen.get("clean_up_artifacts")
    assert len(list(neighbour.iterdir())) == 1


def test_cleaning_up_sae_bench_deletes_what_other_runs_keep_there(tmp_path):
    others = tmp_path / "artifacts/unlearning/gemma-2-2b-it/another_runs_sae"
    others.mkdir(parents=True)
    run_eval(
        "gemma-2-2b-it",
        output_path=str(tmp_path / "out"),
        clean_up_artifacts=True,
        artifacts_path=str(tmp_path / "artifacts"),
    )
    assert not others.exists()


@pytest.mark.parametrize("name", ["Llama-3.1-8B-Instruct", "Qwen2.5-1.5B-Instruct"])
def test_sae_bench_refuses_instruct_models_by_their_name(tmp_path, name):
    with pytest.raises(ValueError, match="should be instruct tuned"):
        run_eval(name, output_path=str(tmp_path), loader=stop)


def test_sae_bench_takes_a_base_model_for_instruct_by_its_name(tmp_path):
    with pytest.raises(Stop):  # it goes on to load the model
        run_eval("granite-3.1-2b-base", output_path=str(tmp_path), loader=stop)


def test_sae_bench_has_prompts_for_two_models_and_says_so_only_after_the_corpora():
    from sae_bench.evals.unlearning.utils import metrics

    row = {"question": "?", "choices": list("abcd"), "answer": 0}
    model: Any = SimpleNamespace(cfg=SimpleNamespace(model_name="nano-it"))
    with (
        patched(metrics, "load_dataset_with_retries", lambda *a, **k: [row]),
        pytest.raises(Exception, match="prompt format not found"),
    ):
        metrics.calculate_MCQ_metrics(model, 2, "", "wmdp-bio")


def test_ours_asks_in_the_models_own_format_and_refuses_a_model_without_at_once(
    tmp_path, monkeypatch
):
    from sae_bench.evals.unlearning.utils import metrics

    ctx = tiny.context(tmp_path)
    tokenizer = ctx.model("instruct").tokenizer
    template = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with asked(ctx) as model:
        prompt = metrics.convert_wmdp_data_to_prompt(
            "Which?", list("abcd"), prompt_format="GEMMA_INST_FORMAT", pre_question="About x.\n"
        )
        row = {"question": "Which?", "choices": list("abcd"), "answer": 0}
        with patched(metrics, "load_dataset_with_retries", lambda *a, **k: [row]), quiet():
            found = metrics.calculate_MCQ_metrics(model, 2, "", "wmdp-bio")
    expected = "<bos>[INST] About x.\nWhich?\nA. a\nB. b\nC. c\nD. d [/INST]Answer: ("
    assert prompt == expected
    assert found["output_probs"].shape == (1, 4)
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="has no chat template"), asked(ctx):
        raise AssertionError("was let through")


def test_sae_bench_finds_the_corpus_only_from_its_own_checkout(tmp_path, monkeypatch):
    from sae_bench.evals.unlearning.utils import feature_activation

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feature_activation, "load_dataset", lambda *args, **kwargs: [])
    with pytest.raises(FileNotFoundError, match="bio-forget-corpus.jsonl"):
        feature_activation.get_forget_retain_data()
    ctx = tiny.context(tmp_path)
    with sae_bench_on(ctx, "base"), reading_corpora(ctx, CFG):
        forget, retain = feature_activation.get_forget_retain_data()
    assert forget and retain
    ours = [row["text"] for row in ctx.hub.load_dataset("bio-forget-corpus", split="train")]
    assert forget == [text for text in ours if len(text) > 50]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_corpus_may_be_a_file_of_either_format(tmp_path, suffix):
    import pandas as pd

    texts = [f"{'a virus is not a bacterium ' * 4}{i}" for i in range(3)]
    file = tmp_path / f"forget{suffix}"
    if suffix == ".parquet":
        pd.DataFrame({"text": texts}).to_parquet(file)
    else:
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    from sae_bench.evals.unlearning.utils import feature_activation

    ctx = tiny.context(tmp_path)
    cfg = UnlearningSuite.Config(forget=str(file))
    with sae_bench_on(ctx, "base"), reading_corpora(ctx, cfg):
        assert feature_activation.get_forget_retain_data()[0] == texts


def test_without_a_question_sae_bench_ends_in_an_empty_stack_ours_with_counts():
    from sae_bench.evals.unlearning.utils.metrics import get_output_probs_abcd

    model = SimpleNamespace(
        cfg=SimpleNamespace(model_name="gemma-2-2b-it"),
        to_tokens=lambda *args, **kwargs: torch.zeros(8),
    )
    with pytest.raises(RuntimeError, match="empty|non-empty"), quiet():
        get_output_probs_abcd(model, [], batch_size=0, n_batches=0)
    with pytest.raises(TooFewQuestions, match="wmdp-bio: 3 questions, 20 needed"):
        check_enough({"wmdp-bio": [1, 2, 3], "human_aging": list(range(30))}, 20)
    check_enough({"wmdp-bio": list(range(20)), "human_aging": list(range(30))}, 20)


def test_the_metric_that_sae_bench_documents_fails_and_the_one_it_takes_has_no_file(tmp_path):
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
    from sae_bench.evals.unlearning.utils import metrics

    documented = UnlearningEvalConfig.__dataclass_fields__["target_metric"].default.description
    assert "correct-no-tricks" in documented

    def ask(target: str) -> None:
        with patched(metrics, "load_dataset_with_retries", lambda *a, **k: []):
            metrics.calculate_MCQ_metrics(
                SimpleNamespace(),
                2,
                str(tmp_path),
                target_metric=target,
            )

    with pytest.raises(AssertionError, match="not recognised"):
        ask("correct-no-tricks")
    with pytest.raises(FileNotFoundError, match="correct_no_tricks"):
        ask("correct_no_tricks")
    with pytest.raises(UserError, match="target_metric"):
        build(UnlearningSuite.Config, {"target_metric": "correct-no-tricks"}, "suites.unlearning")


def grid(seed: int, n_questions: int = 80, n_settings: int = 16) -> list[Setting]:
    """Settings that all lose 5 % of the hazard answers, by lot, and no other."""
    draws = random.Random(seed)
    side = {"human_aging": dict.fromkeys(range(40), 1.0)}
    return [
        Setting(
            multiplier,
            10,
            0.01,
            {"wmdp-bio": {i: float(draws.random() > 0.05) for i in range(n_questions)}} | side,
            n_touched=n_questions,
        )
        for multiplier in range(n_settings)
    ]


def test_choosing_and_reporting_on_the_same_questions_doubles_the_score_ours_stays():
    runs = [grid(seed) for seed in range(60)]
    theirs = np.mean([saebench_score(settings) for settings in runs])
    ours = np.mean([(1 - CHANCE) * cross_fitted(s, 0, 0.99).drop for s in runs])
    assert theirs > 0.08
    assert abs(ours - 0.05) < 0.01


def test_our_copy_of_its_score_is_its_score(tmp_path):
    from sae_bench.evals.unlearning.main import get_metrics_df, get_unlearning_scores

    shares = (0.9, 0.4, 0.7)
    settings = []
    for multiplier, share in enumerate(shares, start=1):
        metrics_file(tmp_path, multiplier, share)
        answers = {i: float(i < round(10 * share)) for i in range(10)}
        side = {"human_aging": dict.fromkeys(range(10), 1.0)}
        settings.append(Setting(multiplier, 10, 0.01, {"wmdp-bio": answers} | side))
    score = get_unlearning_scores(get_metrics_df(tmp_path))
    assert saebench_score(settings) == pytest.approx(score)


def test_the_headline_is_ours_and_sae_benchs_score_keeps_its_name():
    by_name = {metric.name: metric for metric in UnlearningSuite.metrics}
    assert by_name["unlearning_score"].headline
    assert not by_name["saebench060_unlearning_score"].headline
    assert "saebench060_side_accuracy" in by_name


def test_sae_bench_leaves_gradients_off_for_the_rest_of_the_process_ours_does_not(tmp_path):
    from sae_bench.evals.unlearning.utils import eval as theirs

    def evaluate() -> None:
        with (
            patched(theirs, "save_feature_sparsity", lambda *args: None),
            patched(theirs, "load_sparsity_data", lambda *args: (None, None)),
            patched(theirs, "run_metrics_calculation", lambda *args: None),
        ):
            theirs.run_eval_single_sae(None, None, sae_bench_config(), str(tmp_path), "a", True)

    assert torch.is_grad_enabled()
    try:
        evaluate()
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    with sae_bench_on(tiny.context(tmp_path), "instruct"):
        evaluate()
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
