"""Traps of sae_bench 0.6.0 that no single evaluation owns, each shown in its own code."""

import importlib
import importlib.metadata
import inspect
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bench import importer, registry, saelens_import
from bench.config import SaelensConfig
from bench.context import sae_bench_on
from bench.errors import UserError
from bench.keys import content_key
from suites.core import CoreSuite
from tests import tiny
from tests.saebench import quiet
from tests.test_importer import result

ROOT = Path(__file__).parents[1]
QUICK = CoreSuite.Config(
    batch_size_prompts=2,
    n_eval_reconstruction_batches=1,
    n_eval_sparsity_variance_batches=1,
    context_size=16,
)


def core_results(ctx, sae):
    """What sae_bench returns for an SAE named a that is not forced."""
    import sae_bench.evals.core.main as core

    with sae_bench_on(ctx, "base"), quiet():
        return core.multiple_evals(
            [("a", sae)],
            n_eval_reconstruction_batches=1,
            n_eval_sparsity_variance_batches=1,
            eval_batch_size_prompts=2,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            context_size=16,
            output_folder=str(ctx.work / "theirs"),
            device="cpu",
        )


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_retrained_sae_of_the_same_name_is_skipped_by_sae_bench_and_scored_by_us(
    tmp_path, engine
):
    ctx = tiny.context(tmp_path)
    ctx.engine = engine
    assert len(core_results(ctx, tiny.make_sae(seed=0))) == 1
    assert core_results(ctx, tiny.make_sae(seed=1)) == []  # the old file stays
    found = []
    for seed in (0, 1):
        (scored,) = CoreSuite(QUICK).run(ctx, [tiny.handle("a", tiny.make_sae(seed=seed))])
        found.append(scored.metrics["explained_variance"])
    assert found[0] != found[1]


def test_other_weights_are_another_cell(tmp_path):
    from bench.checkpoint import Record, read_record, save_sae
    from bench.result import SaeInfo
    from bench.variant import Exported

    info = SaeInfo("a", "trained", "relu", "nano", "nano", tiny.HOOK, tiny.D_MODEL, tiny.D_SAE)
    keys = set()
    for seed in (0, 1):
        record = Record(info, "key", "source", "text", 16, 10, 1.0)
        state = {n: v.detach() for n, v in tiny.make_sae(seed=seed).state_dict().items()}
        heldout = torch.randn(64, tiny.D_MODEL, generator=torch.Generator().manual_seed(0))
        save_sae(tmp_path / str(seed), record, Exported("standard", {}, state), heldout)
        keys.add(content_key(read_record(tmp_path / str(seed))))
    assert len(keys) == 2


@pytest.fixture
def run_all(monkeypatch):
    """sae_bench's run_all_evals_custom_saes, without the evaluations that it only names."""
    for name in ("autointerp", "ravel", "scr_and_tpp", "sparse_probing_sae_probes"):
        package = f"sae_bench.evals.{name}"
        for module in (package, f"{package}.main"):
            monkeypatch.setitem(sys.modules, module, ModuleType(module))
        monkeypatch.setattr(
            sys.modules[package], "main", sys.modules[f"{package}.main"], raising=False
        )
    name = "sae_bench.custom_saes.run_all_evals_custom_saes"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def test_sae_benchs_own_runner_knows_two_models_and_never_unlearns(
    run_all, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = ([("a", tiny.make_sae())], 2, "float32", "cpu", ["unlearning"])
    for model in ("pythia-160m-deduped", "gemma-2-9b", "nano"):
        with pytest.raises(ValueError, match="Unsupported model"):
            run_all.run_evals(model, *arguments)
    run_all.run_evals("gemma-2-2b", *arguments)
    assert "Skipping, need to clean up unlearning interface" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.json"))
    assert {"core", "sparse_probing", "absorption", "unlearning"} <= set(registry.names("suites"))


def test_sae_probes_results_cannot_be_forced_and_are_neither_run_nor_imported_here(tmp_path):
    import json

    from sae_probes import run_sae_evals

    assert not [name for name in inspect.signature(run_sae_evals).parameters if "force" in name]
    assert not [name for name in registry.names("suites") if "sae_probes" in name]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(result("sparse_probing_sae_probes", {})))
    with pytest.raises(UserError, match="unknown eval_type_id 'sparse_probing_sae_probes'"):
        importer.import_path(file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_thresholds_move_in_half_precision_and_the_precision_is_part_of_every_result(tmp_path):
    from dataclasses import fields

    from bench.keys import CellContent
    from tests.test_saelens_import import theirs

    sae = theirs("jumprelu", is_unit=True)
    x = torch.randn(2000, tiny.D_MODEL, generator=torch.Generator().manual_seed(0))
    full = sae.encode(x) > 0
    half = sae.to(torch.bfloat16).encode(x.bfloat16()) > 0
    assert (full != half).any()  # as sae_bench casts every SAE to the model's precision
    assert "dtype" in {f.name for f in fields(CellContent)}
    (scored,) = CoreSuite(QUICK).run(tiny.context(tmp_path), [tiny.handle("a")])
    assert scored.saebench["eval_config"]["llm_dtype"] == "float32"


def saved(folder, architecture, **settings) -> SaelensConfig:
    """An SAE of SAELens on disk."""
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(architecture)
    sae = sae_class(config_class(**({"d_in": tiny.D_MODEL, "d_sae": 40} | settings)))
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(sae.W_dec.shape), dim=-1))
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "nano", tiny.HOOK
    sae.save_model(folder)
    return SaelensConfig(path=str(folder))


TEMPORAL = {"d_in": 32, "n_heads": 2, "bottleneck_factor": 4, "n_attn_layers": 1, "kval_topk": 4}


def test_an_sae_without_encoder_matrix_is_not_imported(tmp_path):
    what = saved(tmp_path / "tied", "temporal", tied_weights=True, **TEMPORAL)
    with pytest.raises(UserError, match="a temporal has no W_enc"):
        saelens_import.load(what)


def test_an_sae_that_reads_its_context_is_not_imported(tmp_path):
    what = saved(tmp_path / "untied", "temporal", tied_weights=False, **TEMPORAL)
    with pytest.raises(UserError, match="a temporal encodes a token by those around it"):
        saelens_import.load(what)


def test_an_sae_whose_latents_depend_on_the_batch_is_not_imported(tmp_path, monkeypatch):
    from sae_lens.saes.topk_sae import TopKSAE

    what = saved(tmp_path / "b", "topk", k=3)
    assert saelens_import.load(what).d_sae == 40

    def over_the_batch(self, x):
        pre = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        least = pre.flatten().topk(3 * len(x)).values[-1]
        return pre * (pre >= least)

    monkeypatch.setattr(TopKSAE, "encode", over_the_batch)
    with pytest.raises(UserError, match="scores would depend on the batch"):
        saelens_import.load(what)


@pytest.mark.parametrize("name", ["datasets", "numpy", "sae_lens", "beartype"])
def test_the_versions_that_sae_bench_needs_are_installed(name):
    from packaging.requirements import Requirement

    needs = {r.name: r for r in map(Requirement, importlib.metadata.requires("sae-bench") or [])}
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = {r.name: r for r in map(Requirement, ours)}
    assert needs[name].specifier.contains(importlib.metadata.version(name))
    if name in ("datasets", "numpy"):  # their newest would not do
        assert not needs[name].specifier.contains("9999")
        assert not pinned[name].specifier.contains("9999")


def test_sae_bench_asks_to_run_code_of_a_data_set_and_gets_none(tmp_path, monkeypatch):
    from sae_bench.sae_bench_utils import dataset_utils

    source = inspect.getsource(dataset_utils)
    assert "trust_remote_code=True" in source  # fixed in its code, whoever calls
    import datasets

    from bench.datasets import RemoteHub
    from bench.sources import Sources

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append(kwargs))
    hub = RemoteHub(tmp_path, SimpleNamespace(trust_remote_code=False, commit=lambda *a: "c0ffee"))
    hub.load_dataset("codeparrot/github-code", split="train", trust_remote_code=True)
    assert asked[0]["trust_remote_code"] is False
    assert asked[0]["revision"] == "c0ffee"
    assert Sources().trust_remote_code is False
