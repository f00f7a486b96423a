"""SAEs of others become baselines without a change of what they do, or are refused in one line."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file

from bench import checkpoint, registry, saelens_import
from bench.config import RunConfig, SaelensConfig, TrainConfig, VariantConfig
from bench.datasets import LocalHub
from bench.doctor import plugins
from bench.doctor.subject import Subject
from bench.errors import UserError
from bench.importer import import_path
from bench.models import resolve
from bench.overrides import apply
from bench.train import train_all
from bench.validate import validate
from tests import tiny

D_IN, D_SAE = tiny.D_MODEL, 40
KINDS = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
}


def theirs(kind: str = "standard", *, is_unit: bool = False, **cfg):
    """A random SAE of SAELens with decoder rows of various norms, on the tiny model."""
    sae_class, config_class, own = KINDS[kind]
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **{**own, **cfg}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
            if name == "threshold":
                p.abs_()
        if is_unit:
            sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True))
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "nano", tiny.HOOK
    return sae


def saved(folder: Path, sae) -> SaelensConfig:
    sae.save_model(folder)
    return SaelensConfig(path=str(folder))


def config(*saes: SaelensConfig) -> RunConfig:
    return RunConfig(
        name="mine",
        model="nano",
        hook_name=tiny.HOOK,
        train=TrainConfig(
            d_sae=32, tokens=2_000, batch_size=256, context_size=32, heldout_tokens=256
        ),
        variants=(VariantConfig("topk", {"k": 4}),),
        saelens=saes,
        suites={"core": {}},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_folded_and_the_output_stays(kind, tmp_path):
    sae = theirs(kind)
    found = saelens_import.load(saved(tmp_path / "theirs", sae))
    assert found.exported.architecture == kind
    norms = found.exported.state["W_dec"].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(D_SAE), rtol=0, atol=1e-5)
    record = checkpoint.Record(
        info=checkpoint.SaeInfo("x", "imported", "x", "nano", "nano", tiny.HOOK, D_IN, D_SAE),
        key="",
        source="",
        dataset="",
        context_size=0,
        n_steps=0,
        scale=1.0,
    )
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(1))
    checkpoint.save_sae(tmp_path / "ours", record, found.exported, x)
    ours, original = checkpoint.load_sae(tmp_path / "ours"), SAE.load_from_disk(tmp_path / "theirs")
    torch.testing.assert_close(ours(x), original(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.encode(x) > 0, original.encode(x) > 0)


def test_an_imported_sae_stands_beside_ours_in_a_run(tmp_path):
    what = saved(tmp_path / "theirs", theirs())
    out = tmp_path / "results" / "mine"
    folders = train_all(
        config(what), tiny.pair()[0], LocalHub(tiny.data()), out, lambda *args: None
    )
    assert [f.name for f in folders] == ["topk_k4_s0", "theirs"]
    info = checkpoint.read_info(folders[1])
    assert (info.role, info.d_sae, info.init_seed) == ("imported", D_SAE, None)
    assert info.l0 is not None and info.l0 > 0  # measured on the held-out split, as ours are
    before = (folders[1] / "config.json").stat().st_mtime_ns
    train_all(config(what), tiny.pair()[0], LocalHub(tiny.data()), out, lambda *args: None)
    assert (folders[1] / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model_name", "gpt2", "was trained on 'gpt2', the run is on 'nano'"),
        ("hook_name", "blocks.0.hook_resid_post", "the run is at blocks.1.hook_resid_post"),
    ],
)
def test_an_sae_of_another_model_or_hook_is_refused(field, value, says, tmp_path):
    sae = theirs()
    setattr(sae.cfg.metadata, field, value)
    what = saved(tmp_path / "theirs", sae)
    with pytest.raises(UserError, match=says):
        saelens_import.check(what, tiny.pair()[0], tiny.HOOK)


def test_an_sae_of_another_width_is_refused(tmp_path):
    what = saved(tmp_path / "theirs", theirs())
    path = tmp_path / "theirs" / "cfg.json"
    path.write_text(path.read_text().replace(f'"d_in": {D_IN}', '"d_in": 7'))
    with pytest.raises(UserError, match=f"is 7 wide, {tiny.HOOK} of nano is {D_IN}"):
        saelens_import.check(what, tiny.pair()[0], tiny.HOOK)


def broken_weights(folder: Path) -> None:
    path = folder / checkpoint.SAELENS_WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:1000])


def no_numbers(folder: Path) -> None:
    path = folder / checkpoint.SAELENS_WEIGHTS_FILE
    save_file({name: p * float("nan") for name, p in load_file(path).items()}, path)


def edited(field: str, value: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / checkpoint.SAELENS_CONFIG_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))

    return edit


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (broken_weights, "is not a safetensors file"),
        (no_numbers, "holds NaN or infinite numbers"),
        (edited("architecture", "evil"), "cannot be loaded: KeyError: 'evil'"),
        (edited("d_sae", 7), "cannot be loaded: RuntimeError: "),
        (edited("k", "many"), "a topk that cannot encode: "),
    ],
)
def test_a_damaged_sae_is_one_line_for_the_doctor_and_before_any_training(
    damage, says, tmp_path, monkeypatch
):
    what = saved(tmp_path / "theirs", theirs("topk"))
    damage(tmp_path / "theirs")
    spec = tiny.pair()[0]
    monkeypatch.setattr("bench.doctor.subject.resolve", lambda *names: spec)
    found = {check.name: check for check in plugins.checks(Subject(config(what), tmp_path / "run"))}
    assert found["SAEs"].state == "fail" and says in found["SAEs"].message
    assert "\n" not in found["SAEs"].message

    monkeypatch.setattr("bench.train._train", lambda *args: pytest.fail("trains"))
    with pytest.raises(UserError, match=re.escape(says)):
        train_all(config(what), spec, LocalHub(tiny.data()), tmp_path / "run", lambda *args: None)


def test_what_cannot_be_folded_is_refused(tmp_path):
    with pytest.raises(UserError, match="norms from .* cannot be folded into a topk"):
        saelens_import.load(
            saved(tmp_path / "a", theirs("topk", rescale_acts_by_decoder_norm=False))
        )
    what = saved(tmp_path / "b", theirs(normalize_activations="layer_norm"))
    with pytest.raises(UserError, match="normalize_activations='layer_norm' cannot be folded"):
        saelens_import.load(what)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", ["pickle", "torch"])
@pytest.mark.parametrize("name", ["sae_weights.safetensors", "sae_weights.pt"])
def test_a_pickle_is_refused_and_never_run(name, protocol, tmp_path):
    folder, trace = tmp_path / "theirs", tmp_path / "ran"
    saved(folder, theirs())
    (folder / "sae_weights.safetensors").unlink()
    if protocol == "pickle":
        (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"W_dec": Bomb(trace)}, folder / name)
    with pytest.raises(UserError, match="is not a safetensors file|is a pickle, which is never"):
        saelens_import.load(SaelensConfig(path=str(folder)))
    assert not trace.exists()


def test_our_own_checkpoint_with_a_pickle_in_place_of_its_weights_is_refused(tmp_path):
    found = saelens_import.load(saved(tmp_path / "theirs", theirs()))
    info = checkpoint.SaeInfo("x", "imported", "x", "nano", "nano", tiny.HOOK, D_IN, D_SAE)
    record = checkpoint.Record(info, "", "", "", 0, 0, 1.0)
    checkpoint.save_sae(tmp_path / "ours", record, found.exported, torch.randn(20, D_IN))
    trace = tmp_path / "ran"
    (tmp_path / "ours" / checkpoint.WEIGHTS_FILE).write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(UserError, match="are not those of its config.json"):
        checkpoint.load_sae(tmp_path / "ours")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("release", "sae_id", "says"),
    [
        ("gemma-scope-2b-pt-res", "layer_99/x", "unknown sae_id 'layer_99/x'"),
        ("gemma-scope-2b-pt-ress", "x", "did you mean 'gemma-scope-2b-pt-res'"),
        ("sae_bench_pythia70m_sweep_standard_ctx128_0712", None, "pickled"),
    ],
)
def test_a_release_that_cannot_be_had_is_refused_before_any_work(release, sae_id, says):
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    sae_id = sae_id or next(iter(get_pretrained_saes_directory()[release].saes_map))
    with pytest.raises(UserError, match=says):
        saelens_import.check(SaelensConfig(release=release, sae_id=sae_id), *tiny.pair()[:1], "x")


def test_a_release_without_network_is_one_line_with_the_way_out():
    what = SaelensConfig(
        release="gemma-scope-2b-pt-res-canonical", sae_id="layer_12/width_16k/canonical"
    )
    with pytest.raises(
        UserError, match="cannot be fetched from the hub .* give its `path`"
    ) as caught:
        saelens_import.load(what)
    assert "\n" not in str(caught.value)


def test_the_loaders_that_unpickle_are_known():
    """Those of the installed sae_lens that call torch.load are exactly the ones that we refuse."""
    import inspect

    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS as loaders

    found = {name for name, f in loaders.items() if "torch.load(" in inspect.getsource(f)}
    assert found == set(saelens_import.UNPICKLES)


def test_a_config_gives_a_path_or_a_release():
    for wrong in (SaelensConfig(), SaelensConfig("x", "y", "z"), SaelensConfig(release="y")):
        with pytest.raises(UserError, match=r"saelens\[0\]: give either path, or release and"):
            validate(config(wrong))


def test_the_command_line_takes_a_folder_or_a_release(tmp_path):
    chosen = apply(config(), saes=[str(tmp_path), "some-release:layer_1/x"])
    assert chosen.saelens[0].path == str(tmp_path.resolve())
    assert chosen.saelens[1] == SaelensConfig(release="some-release", sae_id="layer_1/x")


def test_importing_results_from_the_folder_of_an_sae_says_what_to_do(tmp_path):
    saved(tmp_path / "theirs", theirs())
    with pytest.raises(UserError, match="is an SAE, not a result: score it with `run --sae"):
        import_path(tmp_path / "theirs", tmp_path / "run")
    assert registry.names("variants") and json.loads((tmp_path / "theirs/cfg.json").read_text())


@pytest.mark.parametrize("model", ["gemma-2-2b", "gemma-2-2b-it"])
def test_a_release_of_another_model_is_refused_before_it_is_fetched(model):
    what = SaelensConfig(
        release="gemma-scope-2b-pt-res-canonical", sae_id="layer_12/width_16k/canonical"
    )
    hook = "blocks.12.hook_resid_post"
    saelens_import.check(what, resolve(model), hook)
    with pytest.raises(UserError, match="was trained on 'gemma-2-2b', the run is on 'gemma-2-9b'"):
        saelens_import.check(what, resolve("gemma-2-9b"), hook)
