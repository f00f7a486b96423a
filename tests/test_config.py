"""A config is refused in one line, with field, value and fix, before anything heavy is imported."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from textwrap import dedent

import pytest

from bench import overrides, registry
from bench.config import RunConfig, TrainConfig, default_config, load_config
from bench.errors import UserError
from bench.validate import RANGES
from tests.samples import VARIANT

GOOD = """
    name: mine
    model: nano
    hook_name: blocks.2.hook_resid_post
    train: {d_sae: 64, tokens: 10_000, batch_size: 512, lr: 3e-4}
    variants:
      - {name: mine, config: {k: 8}, target_l0: 8}
      - {name: mine, config: {k: 16}}
    controls:
      - {name: random, target_l0: 8}
      - {name: mean}
    suites:
      shine: {n_probes: 3}
      plain:
    seeds: [0, 1]
"""
SUITE = '''
    from dataclasses import dataclass
    from typing import Literal
    from bench.suite import Suite

    class Shine(Suite):
        """Measures shine."""

        @dataclass(frozen=True)
        class Config:
            n_probes: int = 5
            kind: Literal["short", "long"] = "short"
            sizes: tuple[int, ...] = (1,)

        metrics = ()
        side = "base"
'''


@pytest.fixture
def load(plugins, tmp_path):
    """Writes a config with `old` replaced by `new` and loads it."""
    plugins("variants/mine.py", VARIANT)
    plugins("suites/shine.py", SUITE)
    plugins("suites/plain.py", SUITE.replace("Shine", "Plain"))

    def write(old: str = "", new: str = "") -> RunConfig:
        assert old in GOOD
        path = tmp_path / "config.yaml"
        path.write_text(dedent(GOOD.replace(old, new, 1)))
        return load_config(path)

    return write


def test_a_good_config_is_read_with_its_types(load):
    config = load()
    assert config.train == TrainConfig(d_sae=64, tokens=10_000, batch_size=512, lr=3e-4)
    assert [(v.config, v.target_l0) for v in config.variants] == [
        ({"k": 8}, 8.0),
        ({"k": 16}, None),
    ]
    assert isinstance(config.variants[0].target_l0, float)
    assert config.suites == {"shine": {"n_probes": 3}, "plain": {}}
    assert config.seeds == (0, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: mine", "nmae: mine", "unknown field 'nmae': did you mean 'name'?"),
        ("d_sae: 64,", "d_sea: 64,", "unknown field in train 'd_sea': did you mean 'd_sae'?"),
        ("name: mine, config", "naem: mine, config", "field in variants[0] 'naem': did you mean"),
        ("{name: mean}", "{name: mean, k: 1}", "unknown field in controls[1] 'k'"),
        ("model: nano", "", "model is missing"),
        ("d_sae: 64, ", "", "train.d_sae is missing"),
        ("model: nano", "model: nanoo", "unknown model 'nanoo': did you mean 'nano'"),
        ("{name: mine, config: {k: 8}", "{name: mien, config: {k: 8}", "variant 'mien': did you"),
        ("shine: {", "shin: {", "unknown suite 'shin': did you mean 'shine'"),
        ("name: random", "name: randon", "unknown control 'randon': did you mean 'random'"),
        ("{k: 8}", "{kk: 8}", "unknown field in variants[0].config (mine) 'kk': did you mean 'k'"),
        ("{k: 8}", "{k: 8.5}", "variants[0].config.k=8.5: must be a whole number"),
        ("{k: 8}", "{k: true}", "variants[0].config.k=True: must be a whole number"),
        ("{k: 8}", "{k: 65}", "variants[0].config.k=65: exceeds train.d_sae=64"),
        ("{n_probes: 3}", "{n_prob: 3}", "unknown field in suites.shine (shine) 'n_prob'"),
        (
            "{n_probes: 3}",
            "{kind: shor}",
            "value of suites.shine.kind 'shor': did you mean",
        ),
        ("{n_probes: 3}", "{sizes: [1, x]}", "suites.shine.sizes[1]='x': must be a whole number"),
        ("{n_probes: 3}", "4", "suites.shine=4: must be a mapping"),
        ("10_000", "-5", "train.tokens=-5: must be at least 1"),
        ("10_000", "511", "train.batch_size=512: exceeds train.tokens=511"),
        ("10_000", "ten", "train.tokens='ten': must be a whole number"),
        ("3e-4", ".nan", "train.lr=nan: must be finite"),
        ("3e-4", "-3e-4", "train.lr=-0.0003: must be at least"),
        ("3e-4", "3e-4, betas: [0.9, 1.0]", "train.betas[1]=1.0: must be in [0, 1)"),
        ("3e-4", "3e-4, betas: [0.9]", "train.betas=[0.9]: must have 2 entries"),
        (
            "target_l0: 8}",
            "target_l0: 65}",
            "variants[0].target_l0=65: must be above 0 and",
        ),
        ("target_l0: 8}", "target_l0: 0}", "variants[0].target_l0=0: must be above 0"),
        ("k: 16", "k: 8", None),
        ("{k: 16}}", "{k: 8}, target_l0: 8}", "variants[1]: repeats variants[0]"),
        ("blocks.2", "blocks.5", "model 'nano' has layers 0 to 4"),
        ("blocks.2.hook_resid_post", "resid", "hook_name='resid': must look like blocks.2"),
        ("hook_resid_post", "hook_mlp_out", "suite 'shine' can only score hook_resid_post"),
        ("[0, 1]", "[0, 0]", "seeds[1]: repeats seeds[0]"),
        ("[0, 1]", "[-1]", "seeds[0]=-1: must be at least 0"),
        ("[0, 1]", "[]", "seeds=[]: give at least one"),
        ("[0, 1]", "0", "seeds=0: must be a list"),
        ("seeds: [0, 1]", "workers: 0", "workers=0: must be at least 1"),
        ("seeds: [0, 1]", "engine: fats", "unknown value of engine 'fats'"),
        ("seeds: [0, 1]", "device: gpu", "device='gpu': must be cpu, cuda"),
        ("seeds: [0, 1]", "model: nano", "'model' is given twice"),
        ("name: mine", "name: ../mine", "name='../mine': must be a folder name"),
        ("name: mine", "name: .store", "name='.store': must be a folder name"),
        ("name: mine", f"name: {'x' * 101}", "must be a folder name of at most 100"),
        ("seeds: [0, 1]", "eval_cache_gb: -1", "eval_cache_gb=-1.0: must be at least 0"),
        (
            "seeds: [0, 1]",
            "activation_cache_gb: -1",
            "activation_cache_gb=-1.0: must be at least 0",
        ),
        ("seeds: [0, 1]", "cell_timeout_s: 0", "cell_timeout_s=0.0: must be at least 1"),
        ("seeds: [0, 1]", "cell_timeout_s: .inf", "cell_timeout_s=inf: must be finite"),
        ("seeds: [0, 1]", "trust_remote_code: 1", "trust_remote_code=1: must be true or false"),
        ("seeds: [0, 1]", "instruct: 5", "instruct=5: must be text"),
        ("seeds: [0, 1]", "instruct: nnao-it", "unknown model 'nnao-it': did you mean 'nano-it'"),
        ("seeds: [0, 1]", "mirror: ''", "mirror='': must be a folder"),
        ("seeds: [0, 1]", "mirror: {}", "mirror={}: must be text"),
        ("name: mine", "name: [", "line "),
    ],
)
def test_a_mistake_is_one_line_that_names_field_value_and_fix(load, old, new, message):
    if message is None:
        assert load(old, new)  # the same variant twice, told apart by its target
        return
    with pytest.raises(UserError) as caught:
        load(old, new)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "config.yaml" in str(caught.value)


def test_a_setting_without_default_must_be_given(load, plugins):
    plugins("suites/shine.py", SUITE.replace("n_probes: int = 5", "n_probes: int"))
    with pytest.raises(UserError, match=r"suites\.shine\.n_probes is missing"):
        load("{n_probes: 3}", "{}")


@pytest.mark.parametrize("side", ["side = 'bas'", ""])
def test_a_suite_must_say_which_model_it_runs_on(load, plugins, side):
    assert 'side = "base"' in SUITE
    plugins("suites/shine.py", SUITE.replace('side = "base"', side))
    with pytest.raises(UserError, match="suite 'shine': side=.*: declare one of base, instruct"):
        load("{n_probes: 3}", "{}")


@pytest.mark.parametrize("content", ["", "- a\n", "text", "a: b: c\n", "\x00"])
def test_what_is_no_config_at_all_is_refused(tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(UserError):
        load_config(path)


def test_a_missing_config_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none.yaml")


def test_every_number_of_the_training_config_has_a_range():
    numbers = {f.name for f in fields(TrainConfig) if f.type in (int, float)}
    assert set(RANGES) == numbers


def test_the_command_line_narrows_variants_and_suites(load):
    config = replace(load(), controls=())
    assert list(overrides.apply(config, suites=["plain"]).suites) == ["plain"]
    assert overrides.apply(config, variants=["mine"]) == config
    with pytest.raises(UserError, match="unknown suite 'plane': did you mean 'plain'"):
        overrides.apply(config, suites=["plane"])


def test_a_plugin_joins_the_run_with_its_defaults(load, plugins):
    path = plugins("newest.py", VARIANT)
    config = overrides.apply(load(), plugins=[path])
    assert [v.name for v in config.variants] == ["mine", "mine", "newest"]
    assert config.variants[-1].config == {}
    only = overrides.apply(load(), variants=["newest"], plugins=[path])
    assert [v.name for v in only.variants] == ["newest"]


def test_the_shipped_configs_are_good():
    paths = sorted(default_config().parent.glob("**/*.yaml"))
    assert default_config() in paths
    for path in paths:
        assert load_config(path).name == path.stem


def test_reading_a_config_imports_nothing_heavy():
    code = """
import sys
from bench.config import default_config, load_config
load_config(default_config())
heavy = {"torch", "transformers", "sae_bench", "sae_lens", "pandas", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(registry.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
