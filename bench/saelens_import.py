"""SAEs that others trained with SAELens, from a folder or a release on the hub, as baselines.

Nothing is unpickled: a folder needs safetensors, and releases whose loader in sae_lens reads
pickles are refused. Decoder norms are folded by SAELens's own rule for the architecture.
"""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from bench.checkpoint import SAELENS_CONFIG_FILE, SAELENS_WEIGHTS_FILE
from bench.config import SaelensConfig
from bench.errors import UserError
from bench.keys import content_key, file_key
from bench.models import ModelSpec, siblings
from bench.variant import Exported

UNPICKLES = (
    "connor_rob_hook_z",
    "goodfire",
    "deepseek_r1",
    "qwen_scope",
    "dictionary_learning_1",
)
"""Loaders of sae_lens 6 that call torch.load."""
PICKLES = (".pt", ".pth", ".bin", ".pkl")
UNIT = 1e-3
"""Decoder norms this near to 1 need no folding."""
LONGEST_LABEL = 200
"""Bytes; file systems take 255."""
N_TRIED = 8
"""Tokens on which an imported SAE is tried."""


class Foreign(NamedTuple):
    """An SAE that was not trained here, with unit decoder rows and in the model's units."""

    exported: Exported
    model: str | None
    hook_name: str | None
    dataset: str
    context_size: int
    d_in: int
    d_sae: int


def label_of(what: SaelensConfig) -> str:
    """Its name in the run, and of its folder: the one given, or the folder's or the release's."""
    name = what.label or (Path(what.path).name if what.path else f"{what.release}_{what.sae_id}")
    # a name of dots alone, or with one in front, would lead elsewhere or be hidden
    label = re.sub(r"[^\w.-]+", "-", name).lstrip(".-") or "imported"
    if len(label.encode()) <= LONGEST_LABEL:
        return label
    return f"{label[: LONGEST_LABEL // 8]}-{content_key(name)}"  # still another for another name


def identity(what: SaelensConfig) -> str:
    """Hash of the files of a folder, or of the name of a release."""
    if what.path is None:
        return content_key([what.release, what.sae_id])
    folder = _checked_folder(Path(what.path))
    return content_key([file_key(folder / f) for f in (SAELENS_CONFIG_FILE, SAELENS_WEIGHTS_FILE)])


def load(what: SaelensConfig) -> Foreign:
    """The SAE. Raises UserError for what cannot be loaded, or not without changing what it does."""
    where = f"saelens {label_of(what)!r}"
    sae = _from_folder(Path(what.path)) if what.path else _from_release(what, where)
    return _foreign(sae, where)


def check(what: SaelensConfig, spec: ModelSpec, hook_name: str) -> None:
    """Raise UserError if a folder does not hold an SAE of this model, hook and width.

    Of a release only the model is known before it is loaded, see `check_fits` for the rest.
    """
    if what.path is None:
        _check_release(what, f"saelens {label_of(what)!r}")
        _check_model(label_of(what), _model_of_release(str(what.release)), spec)
        return
    path = _checked_folder(Path(what.path)) / SAELENS_CONFIG_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        metadata = raw.get("metadata") or raw  # before version 6 they stood beside the rest
        model, hook, d_in = metadata.get("model_name"), metadata.get("hook_name"), raw["d_in"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is not a SAELens config: {error!r}") from error
    _check(label_of(what), (model, hook, d_in), spec, hook_name, spec.d_model)


def check_fits(
    what: SaelensConfig, found: Foreign, spec: ModelSpec, hook_name: str, d_in: int
) -> None:
    """Raise UserError if the SAE is of another model, hook or width than the run's."""
    of = (found.model, found.hook_name, found.d_in)
    _check(label_of(what), of, spec, hook_name, d_in)


def _check(
    label: str,
    of: tuple[str | None, str | None, int],
    spec: ModelSpec,
    hook_name: str,
    width: int | None,
) -> None:
    model, hook, d_in = of
    _check_model(label, model, spec)
    if hook and hook != hook_name:
        raise UserError(f"saelens {label!r}: was trained at {hook}, the run is at {hook_name}")
    if width is not None and d_in != width:
        raise UserError(f"saelens {label!r}: is {d_in} wide, {hook_name} of {spec.name} is {width}")


def _check_model(label: str, model: str | None, spec: ModelSpec) -> None:
    """The model that it was trained on must be the run's, or its sibling in the pair."""
    known = [name for s in siblings(spec) for name in (s.name, s.source)]
    if model and _short(model) not in map(_short, known):
        raise UserError(
            f"saelens {label!r}: was trained on {model!r}, the run is on {spec.name!r}; "
            "set `model:` to the one it was trained on"
        )


def _model_of_release(release: str) -> str | None:
    """As sae_lens's list says; None for a repository that is not in it."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    found = get_pretrained_saes_directory().get(release)
    return found.model if found else None


def _short(model: str) -> str:
    """`google/gemma-2-2b` -> `gemma-2-2b`."""
    return model.rstrip("/").rpartition("/")[2].lower()


def _checked_folder(folder: Path) -> Path:
    for name in (SAELENS_CONFIG_FILE, SAELENS_WEIGHTS_FILE):
        if not (folder / name).is_file():
            pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES)
            hint = f"; {pickles[0]} is a pickle, which is never loaded" if pickles else ""
            raise UserError(
                f"SAELens folder {str(folder)!r}: has no {name}{hint}; write one with sae_lens's "
                "own save_model"
            )
    return folder


def _from_folder(folder: Path) -> Any:
    from sae_lens import SAE
    from safetensors import SafetensorError

    _checked_folder(folder)
    try:
        return SAE.load_from_disk(folder)
    except SafetensorError as error:
        path = folder / SAELENS_WEIGHTS_FILE
        raise UserError(f"{path}: is not a safetensors file: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"SAELens folder {str(folder)!r}: cannot be loaded: {text}") from error


def _from_release(what: SaelensConfig, where: str) -> Any:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from sae_lens import SAE

    _check_release(what, where)
    try:
        return SAE.from_pretrained(str(what.release), str(what.sae_id))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"{where}: cannot be fetched from the hub ({text}); on a machine without network, save "
            "it elsewhere with sae_lens's save_model and give its `path`"
        ) from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def _check_release(what: SaelensConfig, where: str) -> None:
    from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from bench.strict import unknown

    directory, release = get_pretrained_saes_directory(), str(what.release)
    if release in directory and what.sae_id not in directory[release].saes_map:
        raise UserError(f"{where}: {unknown('sae_id', what.sae_id, directory[release].saes_map)}")
    if release not in directory and "/" not in release:
        raise UserError(f"{where}: {unknown('release', release, directory)}")
    loader = get_conversion_loader_name(release)
    if loader in UNPICKLES:
        raise UserError(f"{where}: its weights are pickled ({loader}); pickles are never loaded")


def _foreign(sae: Any, where: str) -> Foreign:
    cfg = sae.cfg
    for name in ("normalize_activations", "reshape_activations"):
        value = getattr(cfg, name, "none")
        if value not in ("none", None):
            raise UserError(f"{where}: {name}={value!r} cannot be folded into its weights")
    _check_usable(sae, where)
    _make_unit(sae, where)
    metadata = cfg.metadata
    state = {name: value.detach().float().clone() for name, value in sae.state_dict().items()}
    return Foreign(
        exported=Exported(cfg.architecture(), _own_fields(cfg), state),
        model=metadata.model_name,
        hook_name=metadata.hook_name,
        dataset=metadata.dataset_path or "",
        context_size=metadata.context_size or 0,
        d_in=cfg.d_in,
        d_sae=cfg.d_sae,
    )


def _check_usable(sae: Any, where: str) -> None:
    """Raise UserError for an SAE that some suite would crash on, or would read otherwise."""
    import torch

    kind = sae.cfg.architecture()
    if getattr(sae, "W_enc", None) is None:
        raise UserError(f"{where}: a {kind} has no W_enc, which core and absorption read")
    for name, value in sae.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"{where}: {name} holds NaN or infinite numbers")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_TRIED, sae.cfg.d_in, generator=generator).to(sae.device, sae.dtype)
    try:
        with torch.no_grad():
            together, alone = sae.encode(x), torch.cat([sae.encode(row[None]) for row in x])
            same = torch.allclose(together, alone, rtol=UNIT, atol=UNIT)
    except (ValueError, RuntimeError, IndexError):
        same = False  # it takes whole contexts only
    except TypeError as error:  # a setting of its cfg.json that sae_lens does not check
        raise UserError(f"{where}: a {kind} that cannot encode: {error}") from error
    if not same:
        raise UserError(
            f"{where}: a {kind} encodes a token by those around it, but absorption passes single "
            "tokens and scores would depend on the batch"
        )


def _make_unit(sae: Any, where: str) -> None:
    """Unit decoder rows, which the suites count on, without changing what is reconstructed."""
    norms = sae.W_dec.norm(dim=-1)
    if (norms - 1).abs().max() <= UNIT:
        return
    if norms.min() < 1e-6:
        raise UserError(f"{where}: {int((norms < 1e-6).sum())} decoder rows are zero")
    try:
        sae.fold_W_dec_norm()
    except NotImplementedError as error:
        raise UserError(
            f"{where}: decoder rows have norms from {norms.min().item():.3g} to "
            f"{norms.max().item():.3g}, which cannot be folded into a {sae.cfg.architecture()}"
        ) from error


def _own_fields(cfg: Any) -> dict[str, Any]:
    """What the config of its architecture has besides that of every architecture."""
    from sae_lens.saes.sae import SAEConfig

    shared = {f.name for f in fields(SAEConfig)} - {"apply_b_dec_to_input"}
    return {k: v for k, v in cfg.to_dict().items() if k not in shared | {"architecture"}}
