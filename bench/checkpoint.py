"""A trained SAE on disk: sae.safetensors and config.json, and the way to and from SAELens.

Weights are those of a SAELens inference SAE with unit decoder rows, in the model's own units.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import UserError
from bench.files import write_atomic
from bench.result import SaeInfo
from bench.sealed import unsealed, write_sealed
from bench.strict import build
from bench.validate import parse_hook

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from bench.variant import Exported

WEIGHTS_FILE, RECORD_FILE = "sae.safetensors", "config.json"
SAELENS_WEIGHTS_FILE, SAELENS_CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
SCHEMA = 1
IN_UNITS_OF_X = ("b_enc", "b_dec", "threshold", "b_gate", "b_mag")
"""Weights that grow with the input; the others do not change with its scale."""
WITHOUT_UNITS = ("W_enc", "W_dec", "r_mag")
ROWS_PER_BATCH = 4096


@dataclass(frozen=True)
class Record:
    """config.json: what the weights are and how they came about; the same on every rerun."""

    info: SaeInfo
    key: str
    """Hash of everything that decides the weights."""
    source: str
    """Hash of the source of the variant or control."""
    dataset: str
    """Hub id of the training text."""
    context_size: int
    n_steps: int
    """Optimiser steps taken."""
    scale: float
    """What activations were divided by in training; folded into the weights here."""
    sink_norm: float | None = None
    """Tokens with a norm above this many times the median were left out of training."""
    sink_fraction: float = 0.0
    """Share of the tokens that this was, on the first of the training text."""
    stop_reason: str | None = None
    """Why training was stopped; there are no weights then."""
    architecture: str | None = None
    """SAELens's name."""
    cfg: dict[str, Any] = field(default_factory=dict)
    """Fields of that architecture's config."""
    weights: str | None = None
    """sha256 of the weights file."""
    explained_variance: float | None = None
    """On the held-out split, from the saved file."""
    n_dead: int | None = None
    """Latents that never fire on the held-out split."""
    schema: int = SCHEMA


class Measured(NamedTuple):
    """An SAE on held-out activations, in inference mode."""

    l0: float
    """Mean active latents per token."""
    explained_variance: float
    """1 - squared error / variance, both summed over tokens and dimensions in float64."""
    n_dead: int
    """Latents that never fire."""


def save_sae(folder: Path, record: Record, exported: "Exported", heldout: "Tensor") -> None:
    """Write weights and record; L0, EV and the dead are measured on what was written.

    `heldout` [n, d_in] is in the model's units, as are the weights. A crash leaves the old files,
    the new ones, or new weights beside an old record, which `load_sae` refuses.
    """
    from safetensors.torch import save

    state = {name: value.contiguous().cpu() for name, value in exported.state.items()}
    data = save(state)
    written = replace(
        record,
        architecture=exported.architecture,
        cfg=exported.cfg,
        weights=hashlib.sha256(data).hexdigest(),
    )
    write_atomic(folder / WEIGHTS_FILE, data)
    found = measure(_load(folder, written).to(heldout.device), heldout)
    save_record(
        folder,
        replace(
            written,
            info=replace(record.info, l0=found.l0),
            explained_variance=found.explained_variance,
            n_dead=found.n_dead,
        ),
    )


def save_record(folder: Path, record: Record) -> None:
    """Write config.json alone: the end of an SAE whose training was stopped."""
    write_sealed(folder / RECORD_FILE, asdict(record))


def is_stopped(folder: Path, key: str) -> bool:
    """Whether training an SAE with this key was stopped, and its folder says why."""
    try:
        record = _record(folder)
    except UserError:
        return False
    return record.key == key and record.stop_reason is not None


def is_saved(folder: Path, key: str) -> bool:
    """Whether a whole SAE with this key lies in `folder`, so that training it again is needless."""
    try:
        record = _record(folder)
        return record.key == key and record.weights == _hash(folder / WEIGHTS_FILE)
    except (UserError, OSError):
        return False


def read_record(folder: Path) -> dict[str, Any]:
    """config.json as a dict. Raises UserError if there is none or it cannot be read."""
    return asdict(_record(folder))


def read_info(folder: Path) -> SaeInfo:
    """What made the SAE. Raises UserError if config.json is missing or cannot be read."""
    return _record(folder).info


def load_sae(folder: Path, device: str = "cpu") -> "SAE[Any]":
    """The SAE as sae_lens knows it, in the model's units, float32, with its metadata filled in.

    Raises UserError if its training was stopped, or if weights and record do not belong together.
    """
    record = _record(folder)
    if record.stop_reason is not None:
        raise UserError(
            f"SAE {record.info.label!r} was not trained to its end: {record.stop_reason}"
        )
    if record.weights != _hash(folder / WEIGHTS_FILE):
        raise UserError(f"SAE {str(folder)!r}: its weights are not those of its {RECORD_FILE}")
    return _load(folder, record, device)


def export_saelens(folder: Path, dest: Path) -> None:
    """Write the SAE to `dest` so that sae_lens alone can load it: `SAE.load_from_disk(dest)`."""
    load_sae(folder)  # refuses what is broken
    dest.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / WEIGHTS_FILE, dest / SAELENS_WEIGHTS_FILE)
    config = _saelens_config(_record(folder), "cpu")
    write_atomic(dest / SAELENS_CONFIG_FILE, json.dumps(config, indent=1))


def in_units_of_model(exported: "Exported", scale: float) -> "Exported":
    """An SAE of x / scale as an SAE of x: feature acts and reconstruction grow by `scale`.

    Exact for activation functions with a(c * pre, c * threshold) = c * a(pre, threshold).
    """
    unknown = set(exported.state) - set(IN_UNITS_OF_X) - set(WITHOUT_UNITS)
    if unknown:
        raise ValueError(
            f"do not know how {', '.join(sorted(unknown))} changes with the scale of x"
        )
    state = {n: v * scale if n in IN_UNITS_OF_X else v for n, v in exported.state.items()}
    return exported._replace(state=state)


def measure(sae: Any, x: "Tensor") -> Measured:
    """L0, explained variance and dead latents of a sae_lens SAE on x [n, d_in]."""
    import torch

    mean = x.double().mean(0)
    error = variance = 0.0
    n_fired = torch.zeros(sae.cfg.d_sae, dtype=torch.long, device=x.device)
    with torch.no_grad():
        for rows in x.split(ROWS_PER_BATCH):
            f = sae.encode(rows)
            error += (rows - sae.decode(f)).double().pow(2).sum().item()
            variance += (rows.double() - mean).pow(2).sum().item()
            n_fired += torch.count_nonzero(f, dim=0)
    return Measured(
        l0=n_fired.sum().item() / len(x),
        explained_variance=1 - error / variance,
        n_dead=int((n_fired == 0).sum()),
    )


def _record(folder: Path) -> Record:
    path = folder / RECORD_FILE
    try:
        raw = unsealed(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise UserError(f"is not an SAE record of schema {SCHEMA}")
        return build(Record, raw)
    except FileNotFoundError:
        raise UserError(f"SAE {str(folder)!r}: has no {RECORD_FILE}") from None
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from error


def _load(folder: Path, record: Record, device: str = "cpu") -> "SAE[Any]":
    from sae_lens import SAE
    from safetensors.torch import load_file

    def read(path: Any, device: str = "cpu", cfg_overrides: Any = None) -> Any:
        return _saelens_config(record, device), load_file(Path(path) / WEIGHTS_FILE, device=device)

    sae: SAE[Any] = SAE.load_from_disk(folder, device=device, converter=read)
    return sae


def _saelens_config(record: Record, device: str) -> dict[str, Any]:
    info = record.info
    layer, _ = parse_hook(info.hook_name)
    return {
        "architecture": record.architecture,
        "d_in": info.d_in,
        "d_sae": info.d_sae,
        "dtype": "float32",
        "device": device,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **record.cfg,
        "metadata": {
            # without it sae_lens takes this for a file of version 5 and drops the metadata
            "sae_lens_version": "6.0.0",
            "model_name": info.model,
            "hook_name": info.hook_name,
            "hook_layer": layer,
            "context_size": record.context_size,
            "prepend_bos": True,
            "dataset_path": record.dataset,
        },
    }


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
