"""What the README shows works as shown."""

import re
from pathlib import Path
from textwrap import dedent

import torch
import yaml
from click import Command, Group

from bench import registry
from bench.cli import main
from bench.config import RunConfig
from bench.doctor import data
from bench.doctor.subject import Subject
from bench.strict import build
from bench.validate import validate
from bench.variant import Batch, Step

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return dedent(text)


def test_the_example_variant_trains(tmp_path, monkeypatch):
    path = tmp_path / "absolute_topk.py"
    path.write_text(block("python"))
    monkeypatch.setenv(registry.PLUGINS_ENV, str(path))
    variant = registry.load("variants", "absolute_topk")
    generator = torch.Generator().manual_seed(0)
    sae = variant(4, 16, variant.Config(k=2), generator=generator)
    x = torch.randn(64, 4, generator=generator)
    step = Step(progress=0.5, sparsity_warmup=1.0, dead=torch.zeros(16, dtype=torch.bool))
    optimiser = torch.optim.Adam(sae.parameters(), 1e-2)
    errors = []
    for _ in range(50):
        optimiser.zero_grad()
        (error,) = sae.losses(Batch(x), step).values()
        error.backward()
        optimiser.step()
        sae.after_step(Batch(x), step)
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]
    exported = sae.export()
    assert exported.cfg["k"] == 2
    torch.testing.assert_close(exported.state["W_dec"].norm(dim=1), torch.ones(16))


def test_the_example_config_is_good(tmp_path):
    config = build(
        RunConfig, {"suites": {}} | yaml.safe_load(block("yaml").replace("core:", "core: {}"))
    )
    validate(config)
    assert {c.state for c in data.checks(Subject(config, tmp_path))} == {"pass"}


def test_every_command_shown_exists_with_its_options():
    whole_lines = re.sub(r"\n {4,}", " ", README)
    shown = re.findall(r"^python bench\.py (.+)$", whole_lines, re.MULTILINE)
    assert {line.split()[0] for line in shown} == set(main.commands)
    for line in shown:
        command: Command = main
        words = re.split(r"[ |]", line.split("#")[0])
        while isinstance(command, Group):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", " ".join(words))) <= options
