"""What the command line changes in a config: fewer variants or suites, plugins from elsewhere."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bench import registry
from bench.config import RunConfig, SaelensConfig, VariantConfig
from bench.suite import Engine
from bench.validate import validate


def apply(
    config: RunConfig,
    *,
    variants: Iterable[str] = (),
    suites: Iterable[str] = (),
    plugins: Iterable[Path] = (),
    engine: Engine | None = None,
    saes: Iterable[str] = (),
    mirror: Path | None = None,
    trust_remote_code: bool = False,
) -> RunConfig:
    """The config with only the named variants and suites (none named: all) and with the plugins.

    A variant or suite that the config does not set up runs with its own defaults; `engine` replaces
    the config's, if given; `saes` are SAEs of others, each a SAELens folder or RELEASE:ID; `mirror`
    is where models and data come from. Raises UserError for an unknown name or a broken plugin.
    """
    added = [registry.add_file(path) for path in plugins]
    wanted = _wanted(variants, [v.name for v in config.variants], added, "variants")
    chosen = [v for name in wanted for v in _set_up(config, name)]
    scored = _wanted(suites, list(config.suites), added, "suites")
    changed = replace(
        config,
        variants=tuple(chosen),
        suites={name: config.suites.get(name, {}) for name in scored},
        engine=engine or config.engine,
        saelens=(*config.saelens, *map(_foreign, saes)),
        mirror=str(mirror) if mirror else config.mirror,
        trust_remote_code=trust_remote_code or config.trust_remote_code,
    )
    validate(changed)
    return changed


def _wanted(
    named: Iterable[str], configured: list[str], added: list[registry.Plugin], kind: registry.Kind
) -> list[str]:
    """Names in order, each once: those on the command line or else the config's, then plugins."""
    extra = [plugin.name for plugin in added if plugin.kind == kind]
    return list(dict.fromkeys([*(named or configured), *extra]))


def _set_up(config: RunConfig, name: str) -> list[VariantConfig]:
    return [v for v in config.variants if v.name == name] or [VariantConfig(name)]


def _foreign(text: str) -> SaelensConfig:
    """A folder if there is one of that name, else RELEASE:ID."""
    release, colon, sae_id = text.partition(":")
    if Path(text).is_dir() or not colon:
        return SaelensConfig(path=str(Path(text).resolve()))
    return SaelensConfig(release=release, sae_id=sae_id)
