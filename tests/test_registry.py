"""Plugins are found by file name, described without running them, and fail loudly."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.errors import UserError
from bench.registry import Kind
from tests.samples import VARIANT

ALL_PLUGINS: list[tuple[Kind, str]] = [
    (kind, name) for kind in registry.BASES for name in registry.names(kind)
]


def test_a_file_is_a_plugin_and_its_name_is_the_file_name(plugins):
    plugins("variants/mine.py", VARIANT)
    plugins("variants/_helper.py", "")
    plugins("variants/__init__.py", "")
    assert registry.names("variants") == ["mine"]


def test_a_description_comes_from_the_source_without_running_it(plugins):
    plugins("variants/mine.py", VARIANT + '\n    raise RuntimeError("was run")')
    (plugin,) = registry.summaries("variants")
    assert plugin.summary == "Keeps half of the latents."
    assert plugin.fields is not None
    assert [(f.name, f.type, f.default) for f in plugin.fields] == [
        ("k", int, "32"),
        ("scale", float | None, "None"),
        ("kind", tuple[int, ...], "(1, 2)"),
    ]
    assert plugin.fields[0].meaning == "Latents kept per token."
    assert plugin.attributes["knob"] == {0: "k", "raises_l0": True, "native": True}


def test_an_inherited_config_is_read_with_its_base(plugins):
    plugins(
        "variants/mine.py",
        """
        from dataclasses import dataclass
        @dataclass
        class Shared:
            lr: float = 1.0
        @dataclass
        class Settings(Shared):
            k: int
        class Mine(Variant):
            Config = Settings
        """,
    )
    fields = registry.describe("variants", "mine").fields
    assert fields is not None and [f.name for f in fields] == ["lr", "k"]


def test_an_imported_config_is_unknown_rather_than_empty(plugins):
    plugins(
        "variants/mine.py",
        """
        from elsewhere import Settings
        class Mine(Variant):
            Config = Settings
        """,
    )
    assert registry.describe("variants", "mine").fields is None


def test_a_wrong_name_gets_the_nearest_match_and_what_exists(plugins):
    plugins("variants/topk.py", VARIANT)
    plugins("variants/gated.py", VARIANT)
    with pytest.raises(UserError, match="unknown variant 'topkk': did you mean 'topk'.*gated"):
        registry.load("variants", "topkk")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("x = 1\ny = 1 / 0\n", 2, "ZeroDivisionError"),
        ("def f(:\n", 1, "SyntaxError"),
        ("\n\nimport no_such_module\n", 3, "ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
        ("import base64\nbase64.b64decode(3)\n", 2, "TypeError"),  # raised inside a library
    ],
)
def test_a_broken_plugin_is_named_with_file_and_line(plugins, text, line, what):
    path = plugins("variants/broken.py", text + "\nclass Broken(Variant): pass\n")
    with pytest.raises(UserError) as caught:
        registry.load("variants", "broken")
    assert str(caught.value).startswith(f"{path}:{line}: {what}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", VARIANT + VARIANT.replace("Mine", "Other")])
def test_a_file_without_exactly_one_plugin_is_refused(plugins, text):
    path = plugins("extra.py", text)
    with pytest.raises(UserError, match="must define"):
        registry.add_file(path)


def test_a_plugin_file_from_elsewhere_is_seen_by_child_processes(plugins, tmp_path):
    path = plugins("own_idea.py", VARIANT)
    assert registry.add_file(path).name == "own_idea"
    assert registry.load("variants", "own_idea").__name__ == "Mine"
    assert registry.load("variants", "own_idea") is registry.load("variants", "own_idea")
    code = "from bench import registry; print(registry.load('variants', 'own_idea').__name__)"
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(registry.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert child.stdout.strip() == "Mine", child.stderr


def test_a_plugin_file_may_not_take_a_name_in_use(plugins):
    plugins("variants/mine.py", VARIANT)
    with pytest.raises(UserError, match="already has a 'mine'"):
        registry.add_file(plugins("mine.py", VARIANT))


@pytest.mark.parametrize(("kind", "name"), ALL_PLUGINS)
def test_the_source_of_every_plugin_tells_the_same_as_the_class(kind, name):
    plugin, cls = registry.describe(kind, name), registry.load(kind, name)
    assert plugin.summary == (cls.__doc__ or "").strip().split("\n")[0] != ""
    assert plugin.fields is not None
    assert [f.name for f in plugin.fields] == [f.name for f in dataclasses.fields(cls.Config)]
