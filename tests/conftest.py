"""Every test runs offline, on one thread, with the library clashes settled as in the product."""

import importlib
import os
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1")

from bench import registry
from bench.compat import prepare

prepare()
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """An empty pair of plugin folders, and a function that writes a file into one."""
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    controls = tmp_path / "controls.py"
    controls.write_text('NAMES = ("random", "mean")')
    monkeypatch.setattr(registry, "CONTROLS", controls)
    monkeypatch.setenv(registry.PLUGINS_ENV, "")  # what a test adds is gone after it
    for kind in registry.BASES:
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(importlib.import_module(kind), "__path__", [str(tmp_path / kind)])

    def write(path: str, text: str) -> Path:
        target = tmp_path / path
        target.write_text(dedent(text))
        return target

    return write
