"""Values of a run config that cannot work, found without importing anything heavy."""

import re
from typing import Any, get_args

from bench import registry
from bench.config import ControlConfig, RunConfig, SaelensConfig, TrainConfig, VariantConfig
from bench.errors import UserError
from bench.registry import Kind, Plugin
from bench.strict import typed, unknown
from bench.suite import Side

HOOK = re.compile(r"blocks\.(\d+)\.(?:\w+\.)?(hook_\w+)")
"""A hook of a transformer block: its layer and kind."""

RANGES: dict[str, tuple[float, float]] = {
    "d_sae": (1, float("inf")),
    "tokens": (1, float("inf")),
    "batch_size": (1, float("inf")),
    "lr": (1e-12, 1.0),
    "warmup_fraction": (0.0, 1.0),
    "sparsity_warmup_fraction": (0.0, 1.0),
    "decay_from": (0.0, 1.0),
    "dead_window_fraction": (0.0, 1.0),
    "grad_clip": (1e-12, float("inf")),
    "context_size": (2, float("inf")),
    "heldout_tokens": (1, float("inf")),
    "buffer_tokens": (1, float("inf")),
    "checkpoint_every": (0.0, 1.0),
}


def validate(config: RunConfig) -> None:
    """Raise UserError for the first value that cannot run, naming field, value and fix."""
    _check_run(config)
    _check_train(config.train)
    for i, variant in enumerate(config.variants):
        _check_variant(variant, config.train.d_sae, f"variants[{i}]")
    for i, control in enumerate(config.controls):
        _check_control(control, config.train.d_sae, f"controls[{i}]")
    for i, foreign in enumerate(config.saelens):
        _check_saelens(foreign, f"saelens[{i}]")
    for name, fields in config.suites.items():
        plugin = _describe("suites", name, "suites")
        _check_fields(plugin, fields, f"suites.{name}")
        _check_side(plugin)
        _check_hook_kind(plugin, config.hook_name)
    _check_model(config)


def _check_run(config: RunConfig) -> None:
    if not re.fullmatch(r"\w[\w.-]{0,99}", config.name):  # .store and .cache lie beside it
        raise UserError(
            f"name={config.name!r}: must be a folder name of at most 100 letters, digits, . _ -, a "
            "letter or digit first"
        )
    if not config.variants:
        raise UserError("variants=[]: name at least one, see `list variants`")
    if not config.suites:
        raise UserError("suites={}: name at least one, see `list suites`")
    if not config.seeds:
        raise UserError("seeds=[]: give at least one")
    for name, values in (
        ("variants", [(v.name, sorted(v.config.items()), v.target_l0) for v in config.variants]),
        ("controls", [(c.name, c.target_l0) for c in config.controls]),
        ("seeds", list(config.seeds)),
    ):
        _check_unique(name, values)
    for name, seed in [(f"seeds[{i}]", s) for i, s in enumerate(config.seeds)] + [
        ("data_seed", config.data_seed),
        ("eval_seed", config.eval_seed),
    ]:
        _check_range(name, seed, 0, 2**32 - 1)  # what numpy's seed accepts
    _check_range("workers", config.workers, 1, 1024)
    _check_range("activation_cache_gb", config.activation_cache_gb, 0.0, float("inf"))
    _check_range("eval_cache_gb", config.eval_cache_gb, 0.0, float("inf"))
    _check_range("cell_timeout_s", config.cell_timeout_s, 1.0, float("inf"))
    if config.mirror == "":
        raise UserError("mirror='': must be a folder; leave it out to use the hub")
    if config.d_in is not None:
        _check_range("d_in", config.d_in, 1, float("inf"))
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", config.device):
        raise UserError(f"device={config.device!r}: must be cpu, cuda, cuda:0, ... or mps")


def _check_train(train: TrainConfig) -> None:
    for name, (low, high) in RANGES.items():
        _check_range(f"train.{name}", getattr(train, name), low, high)
    if train.batch_size > train.tokens:
        raise UserError(
            f"train.batch_size={train.batch_size}: exceeds train.tokens={train.tokens}, lower it"
        )
    _check_unique("train.log_to", list(train.log_to))
    if train.sink_norm is not None and train.sink_norm <= 1:
        raise UserError(
            f"train.sink_norm={train.sink_norm:g}: must be above 1, or it leaves out half the text"
        )
    for i, beta in enumerate(train.betas):
        if not 0 <= beta < 1:
            raise UserError(f"train.betas[{i}]={beta}: must be in [0, 1)")


def _check_variant(variant: VariantConfig, d_sae: int, where: str) -> None:
    plugin = _describe("variants", variant.name, f"{where}.name", variant.config)
    _check_fields(plugin, variant.config, f"{where}.config")
    _check_l0(variant.target_l0, d_sae, where)
    name, native = _knob(plugin)
    if native and variant.config.get(name, 0) > d_sae:
        value = variant.config[name]
        raise UserError(f"{where}.config.{name}={value}: exceeds train.d_sae={d_sae}")


def _check_control(control: ControlConfig, d_sae: int, where: str) -> None:
    have = registry.control_names()
    if control.name not in have:
        raise _at(f"{where}.name", unknown("control", control.name, have))
    _check_l0(control.target_l0, d_sae, where)


def _check_saelens(foreign: SaelensConfig, where: str) -> None:
    is_release = bool(foreign.release and foreign.sae_id)
    if bool(foreign.path) is is_release or bool(foreign.release) is not bool(foreign.sae_id):
        raise UserError(f"{where}: give either path, or release and sae_id")


def _check_fields(plugin: Plugin, values: dict[str, Any], where: str) -> None:
    if plugin.fields is None:  # its Config is imported: building it will check the fields
        return
    have = {field.name: field for field in plugin.fields}
    for name, value in values.items():
        if name not in have:
            raise unknown(f"field in {where} ({plugin.name})", name, have)
        typed(value, have[name].type, f"{where}.{name}")
    for name, field in have.items():
        if field.default is None and name not in values:
            raise UserError(f"{where}.{name} is missing: {plugin.name} has no default for it")


def _check_side(plugin: Plugin) -> None:
    side, known = plugin.attributes.get("side"), get_args(Side)
    if side not in known:
        raise UserError(f"suite {plugin.name!r}: side={side!r}: declare one of {', '.join(known)}")


def _check_hook_kind(plugin: Plugin, hook_name: str) -> None:
    _, kind = parse_hook(hook_name)
    hooks = plugin.attributes.get("hooks", ("hook_resid_post",))
    if kind not in hooks:
        raise UserError(
            f"hook_name={hook_name!r}: suite {plugin.name!r} can only score {', '.join(hooks)}"
        )


def _check_model(config: RunConfig) -> None:
    from bench import models

    layer, _ = parse_hook(config.hook_name)
    n_layers = models.resolve(config.model, config.instruct).n_layers
    if n_layers is not None and layer >= n_layers:
        raise UserError(
            f"hook_name={config.hook_name!r}: model {config.model!r} has layers 0 to {n_layers - 1}"
        )


def check_step_holds_contexts(train: TrainConfig, where: str) -> None:
    """Raise UserError unless every step has room for two whole contexts, which is the least that a
    comparison between contexts needs."""
    least = 2 * (train.context_size - 1)  # BOS is no token to train on
    if train.batch_size < least:
        raise UserError(
            f"{where}: needs two whole contexts per step, that is train.batch_size of at least "
            f"{least} with train.context_size={train.context_size}, not {train.batch_size}"
        )


def parse_hook(hook_name: str) -> tuple[int, str]:
    """`blocks.2.hook_resid_post` -> (2, "hook_resid_post"). Raises UserError for another form."""
    match = HOOK.fullmatch(hook_name)
    if not match:
        raise UserError(f"hook_name={hook_name!r}: must look like blocks.2.hook_resid_post")
    return int(match[1]), match[2]


def _knob(plugin: Plugin) -> tuple[str, bool]:
    """The sparsity knob as written in the source: field name, and whether its value is the L0."""
    knob = plugin.attributes.get("knob") or {}
    if not isinstance(knob, dict):
        return "", False
    return knob.get("name", knob.get(0, "")), bool(knob.get("native", knob.get(2, False)))


def _check_l0(target_l0: float | None, d_sae: int, where: str) -> None:
    if target_l0 is not None and not 0 < target_l0 <= d_sae:
        raise UserError(
            f"{where}.target_l0={target_l0:g}: must be above 0 and at most train.d_sae={d_sae}"
        )


def _check_range(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        limit = f"at least {low:g}" if value < low else f"at most {high:g}"
        raise UserError(f"{where}={value}: must be {limit}")


def _check_unique(where: str, values: list[Any]) -> None:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise UserError(f"{where}[{i}]: repeats {where}[{values.index(value)}]")


def _describe(kind: Kind, name: str, where: str, config: dict[str, Any] | None = None) -> Plugin:
    try:
        return registry.describe(kind, name, config)
    except UserError as error:
        raise _at(where, error) from error


def _at(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: {error}")
