"""The command line: parse, call, print. Every decision is made elsewhere."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from bench import __version__, registry
from bench.catalogue import Listed, lines, rows
from bench.errors import RunStopped, UserError
from bench.signals import Interrupted, raise_when_asked_to_end
from bench.suite import Engine

if TYPE_CHECKING:
    from bench.progress import Progress

SOME_CELL_FAILED = 1
REFUSED = 2


class Commands(click.Group):
    """Shows a user's mistake as one line and exits with status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(REFUSED)
        except RunStopped as error:
            click.echo(f"stopped: {error}; `run` again goes on from here", err=True)
            ctx.exit(SOME_CELL_FAILED)
        except OSError as error:
            if error.filename is None or ctx.invoked_subcommand == "run":
                raise  # a run says itself what its folder lacks
            click.echo(f"error: {str(error.filename)!r}: {error.strerror}", err=True)
            ctx.exit(REFUSED)
        except ModuleNotFoundError as error:
            from bench.doctor.packages import requirement_of

            if (requirement := requirement_of(error.name or "")) is None:
                raise
            click.echo(f"error: {error}; fix: pip install '{requirement}'", err=True)
            ctx.exit(REFUSED)
        except Interrupted as error:
            click.echo(f"interrupted {error}: `run` again goes on from here", err=True)
            raise


class Names(click.ParamType):
    """`a,b` as a tuple of names."""

    name = "a,b"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        return tuple(name.strip() for name in value.split(",") if name.strip())


FILE = click.Path(path_type=Path)
MIRROR = click.option(
    "--mirror", type=FILE, help="Folder of `data fetch`; with it no network is needed."
)
TRUST = click.option(
    "--trust-remote-code", is_flag=True, help="Let data sets of the hub run code of their own."
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sae-verdict")
def main() -> None:
    """SAE Verdict: is my new sparse-autoencoder variant really better?"""


@main.command()
@click.argument("config", type=FILE, required=False)
@click.option("--out", type=FILE, help="Run folder.  [default: results/<config name>]")
@click.option("--variants", type=Names(), default="", help="Only these variants of the config.")
@click.option("--suites", type=Names(), default="", help="Only these suites.")
@click.option("--plugin", "plugins", type=FILE, multiple=True, help="A variant or suite to add.")
@click.option(
    "--engine",
    type=click.Choice(get_args(Engine)),
    help="`reference`: sae_bench's own functions, `fast`: ours.  [default: the config's]",
)
@click.option("--sae", "saes", multiple=True, help="SAELens folder or RELEASE:ID to score too.")
@MIRROR
@TRUST
@click.option("--retry-failed", is_flag=True, help="Try SAEs and cells again that failed.")
@click.option(
    "--skip-unavailable", is_flag=True, help="Leave out suites whose models or data are missing."
)
@click.option("--dry-run", is_flag=True, help="Check everything, say what would run, and stop.")
def run(
    config: Path | None,
    out: Path | None,
    variants: tuple[str, ...],
    suites: tuple[str, ...],
    plugins: tuple[Path, ...],
    saes: tuple[str, ...],
    engine: Engine | None,
    mirror: Path | None,
    trust_remote_code: bool,
    retry_failed: bool,
    skip_unavailable: bool,
    dry_run: bool,
) -> None:
    """Train every SAE of CONFIG, score it with every suite, and write the leaderboard.

    Without CONFIG: the demo on the embedded, synthetic nano world. What is already finished is
    not computed again; what failed is kept as it is, unless --retry-failed. Exit status: 0 all
    cells ok, 1 some cell failed, 2 refused before work, 130 or 143 interrupted.
    """
    from bench.config import default_config, load_config
    from bench.overrides import apply
    from bench.preflight import forecast
    from bench.run import outline
    from bench.run import run as run_config
    from bench.status import failures

    for path in plugins:
        registry.add_file(path)  # the config may name them
    chosen = load_config(config or default_config())
    chosen = apply(
        chosen,
        variants=variants,
        suites=suites,
        plugins=plugins,
        engine=engine,
        saes=saes,
        mirror=mirror,
        trust_remote_code=trust_remote_code,
    )
    folder = out or Path("results") / chosen.name
    click.echo("\n".join([*outline(chosen), f"out       {folder}"]))
    if dry_run:
        click.echo("\n".join(forecast(chosen, folder, skip_unavailable=skip_unavailable)))
        return
    raise_when_asked_to_end()
    cells = run_config(
        chosen,
        folder,
        _progress(),
        retry_failed=retry_failed,
        skip_unavailable=skip_unavailable,
    )
    _report([folder], folder)
    if told := failures(cells):
        click.echo("\n".join(told), err=True)
        sys.exit(SOME_CELL_FAILED)


@main.command()
@click.argument("config", type=FILE, required=False)
@click.option("--out", type=FILE, help="Run folder.  [default: results/<config name>]")
@click.option("--plugin", "plugins", type=FILE, multiple=True, help="A variant or suite to add.")
@click.option("--sae", "saes", multiple=True, help="SAELens folder or RELEASE:ID to score too.")
@click.option("--mirror", type=FILE, help="Folder that `data fetch` filled.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(
    config: Path | None,
    out: Path | None,
    plugins: tuple[Path, ...],
    saes: tuple[str, ...],
    mirror: Path | None,
    as_json: bool,
) -> None:
    """Check in seconds whether a run of CONFIG can succeed here, with a fix for what is missing.

    Without CONFIG: the demo. `run` makes the same checks before it starts. Exit status: 0 it can, 1
    something needed is missing.
    """
    from bench.config import default_config, load_config
    from bench.doctor.examine import examine
    from bench.overrides import apply

    for path in plugins:
        registry.add_file(path)
    chosen = apply(
        load_config(config or default_config()), plugins=plugins, saes=saes, mirror=mirror
    )
    found = examine(chosen, out or Path("results") / chosen.name)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else "\n".join(found.lines()))
    if not found.is_ok:
        sys.exit(SOME_CELL_FAILED)


@main.command()
@click.argument("folder", metavar="RUN", type=FILE)
@click.option("--watch", is_flag=True, help="Again and again until the run is over.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(folder: Path, watch: bool, as_json: bool) -> None:
    """Say how far the run in folder RUN is, what failed and why, also while it goes on."""
    from bench import status as read_status

    for seen in read_status.watch(folder) if watch else [read_status.read(folder)]:
        if watch and not as_json and sys.stdout.isatty():
            click.clear()
        lines = [json.dumps(seen.as_dict())] if as_json else seen.lines()
        click.echo("\n".join(lines))


@main.command("list")
@click.argument("kind", type=click.Choice(get_args(Listed)))
@click.option("--plugin", "plugins", type=FILE, multiple=True, help="A variant or suite to add.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_(kind: Listed, plugins: tuple[Path, ...], as_json: bool) -> None:
    """List the variants, suites or models that exist, with their settings."""
    for path in plugins:
        registry.add_file(path)
    found = rows(kind)
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))


@main.command()
@click.argument("name", metavar="NAME|FILE")
@click.option("--plugin", "plugins", type=FILE, multiple=True, help="A variant or suite to add.")
@click.option("--quick", is_flag=True, help="Leave out what takes more than a moment.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check(name: str, plugins: tuple[Path, ...], quick: bool, as_json: bool) -> None:
    """Rehearse the whole life of a variant or suite in seconds, on small synthetic data.

    Each point passes, warns or fails, with the fix. Exit status: 0 no point failed, 1 some did, 2
    there is no such plugin, or its file cannot be read.
    """
    from bench.check.kit import check as check_plugin

    for path in plugins:
        registry.add_file(path)
    done = check_plugin(name, quick=quick)
    click.echo(json.dumps(done.as_dict(), indent=1) if as_json else "\n".join(done.lines()))
    if not done.is_ok:
        sys.exit(SOME_CELL_FAILED)


@main.command()
@click.argument("kind", type=click.Choice(["variant", "suite"]))
@click.argument("name")
@click.option("--dir", "folder", type=FILE, help="Where to write both.  [default: the checkout]")
def new(kind: str, name: str, folder: Path | None) -> None:
    """Write a working variant or suite NAME, and a test of it, to start from."""
    from bench.scaffold import new as write_new

    files = write_new("variants" if kind == "variant" else "suites", name, folder)
    click.echo(f"wrote {files.plugin} and {files.test}")
    target = name if folder is None else files.plugin
    click.echo(f"next: edit it, then `check {target}`")


@main.command()
@click.argument("folders", metavar="DIR...", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, help="Where to write.  [default: the first DIR]")
def report(folders: tuple[Path, ...], out: Path | None) -> None:
    """Write tables, leaderboard and plots of one run, or of several runs together."""
    _report(folders, out or folders[0])


@main.command("import")
@click.argument("path", type=FILE)
@click.option("--into", type=FILE, required=True, help="Run folder; made if it does not exist.")
def import_(path: Path, into: Path) -> None:
    """Add sae_bench's result files (PATH: one, or a folder of them) to a run folder."""
    from bench.importer import import_path

    done = import_path(path, into)
    for reason in done.skipped:
        click.echo(f"skipped: {reason}", err=True)
    click.echo(f"imported {len(done.cells)} results into {into}")
    _report([into], into)


@main.command()
@click.argument("sae", type=FILE)
@click.argument("dest", type=FILE)
def export(sae: Path, dest: Path) -> None:
    """Write the trained SAE in folder SAE (RUN/saes/LABEL) to DEST, for plain sae_lens to load."""
    from bench.compat import prepare

    prepare()
    from bench.checkpoint import export_saelens

    export_saelens(sae, dest)
    click.echo(f"wrote {dest}: load it with SAE.load_from_disk")


@main.group()
def data() -> None:
    """Models and data sets in a folder, for machines without network."""


@data.command()
@click.argument("config", type=FILE)
@MIRROR
@TRUST
@click.option("--plugin", "plugins", type=FILE, multiple=True, help="A variant or suite to add.")
@click.option("--file", "files", multiple=True, metavar="NAME=PATH", help="A data set you have.")
def fetch(
    config: Path,
    mirror: Path | None,
    trust_remote_code: bool,
    plugins: tuple[Path, ...],
    files: tuple[str, ...],
) -> None:
    """Bring everything that CONFIG needs into a mirror folder; again: go on where it stopped.

    Models and data come from one commit each, no more of a text than the config reads. Exit status:
    0 all is there, 1 something could not be brought, 2 refused.
    """
    from bench.mirror.commands import fetch_config

    problems = fetch_config(
        config,
        mirror,
        plugins=plugins,
        files=files,
        trust_remote_code=trust_remote_code,
        say=click.echo,
    )
    for problem in problems:
        click.echo(f"missing: {problem}", err=True)
    if problems:
        sys.exit(SOME_CELL_FAILED)


@data.command("status")
@click.argument("config", type=FILE)
@MIRROR
@click.option("--plugin", "plugins", type=FILE, multiple=True, help="A variant or suite to add.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def data_status(
    config: Path, mirror: Path | None, plugins: tuple[Path, ...], as_json: bool
) -> None:
    """Say what of CONFIG's needs is in the mirror. Exit status: 0 all of it, 1 not all."""
    from bench.mirror.commands import status_of_config

    items = status_of_config(config, mirror, plugins=plugins)
    shown = [item._asdict() for item in items]
    told = [item.line() for item in items] or ["nothing is needed: all is embedded or local"]
    click.echo(json.dumps(shown, indent=1) if as_json else "\n".join(told))
    if any(item.state != "ok" for item in items):
        sys.exit(SOME_CELL_FAILED)


@data.command()
@click.argument("folder", metavar="DIR", type=FILE)
def verify(folder: Path) -> None:
    """Recompute every checksum of the mirror DIR. Exit status: 0 whole, 1 some file is damaged."""
    from bench.mirror.manifest import verify as damaged

    found = list(damaged(folder))
    for damage in found:
        click.echo(f"{damage.file}: {damage.problem}", err=True)
    click.echo(f"{folder}: {len(found)} damaged files" if found else f"{folder}: whole")
    if found:
        sys.exit(SOME_CELL_FAILED)


@main.group()
def nano() -> None:
    """The embedded, synthetic nano world."""


@nano.command()
@click.option("--out", type=FILE, help="Folder of the models.  [default: the embedded ones]")
@click.option("--mini", is_flag=True, help="Every step on a few batches: a check, not a model.")
def build(out: Path | None, mini: bool) -> None:
    """Remake tokenizer, base model, instruct model and model card from seed."""
    from bench.compat import prepare

    prepare()
    from bench.nano.build import WEIGHTS
    from bench.nano.build import build as build_pair

    if mini and out is None:
        raise UserError("out=None: --mini needs --out DIR, or it would replace the embedded models")
    progress = _progress()

    def report(phase: str, step: int, steps: int, loss: float) -> None:
        progress(phase, step, steps, f"loss {loss:.3f}")

    folder = out or WEIGHTS
    build_pair(folder, mini=mini, report=report)
    click.echo(f"models and card: {folder}")


def _report(folders: Sequence[Path], out: Path) -> None:
    from report.build import build_report

    files = build_report(folders, out)
    click.echo(files.terminal)
    click.echo(f"leaderboard and plots: {files.leaderboard.parent}")


def _progress() -> "Progress":
    from bench.progress import ProgressBar

    def write(text: str) -> None:
        click.echo(text, nl=False, err=True)

    return ProgressBar(write, is_terminal=sys.stderr.isatty())
