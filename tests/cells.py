"""A small factory of finished cells, for tests of what comes after the suites."""

from pathlib import Path

from bench.result import STORE, Cell, MetricValue, SaeInfo, UnitValue, write_manifest

HEADLINES = {
    "core": (("explained_variance", "higher"), ("ce_loss_score", "higher")),
    "sparse_probing": (("sae_top_1_test_accuracy", "higher"),),
    "absorption": (("mean_absorption_fraction", "lower"), ("mean_full_absorption", "lower")),
    "unlearning": (("unlearning_score", "higher"),),
}


def sae(label="topk_k8_s0", **fields) -> SaeInfo:
    """An SAE of the nano world; any field can be given."""
    known = {
        "role": "trained",
        "variant": label.partition("_")[0],
        "world": "nano",
        "model": "nano",
        "hook_name": "blocks.2.hook_resid_post",
        "d_in": 96,
        "d_sae": 768,
        "init_seed": 0,
        "data_seed": 0,
        "l0": 8.0,
        "train_tokens": 500_000,
    }
    return SaeInfo(label=label, **(known | fields))


def cell(suite="core", value: float | None = 0.5, info: SaeInfo | None = None, **fields) -> Cell:
    """A cell whose headline metrics all have `value`, and one unit."""
    info = info or sae()
    metrics = tuple(
        MetricValue(name, value, direction, True) for name, direction in HEADLINES[suite]
    )
    known = {
        "cell_key": f"{suite}-{info.label}".replace("/", "-"),
        "state": "ok",
        "engine": "reference",
        "data_revision": "nano-1",
        "eval_seed": 42,
        "metrics": metrics,
        "units": (UnitValue(metrics[0].name, "class", "set/nurse", 0.5, 200),),
        "wall_s": 1.5,
    }
    return Cell(suite=suite, sae=info, **(known | fields))


def failed(
    suite="core", info: SaeInfo | None = None, reason="RuntimeError: boom", **fields
) -> Cell:
    """A cell that crashed: its headline metrics are known, their values are not."""
    return cell(suite, None, info, **({"units": (), "state": "failed", "reason": reason} | fields))


def save_run(folder: Path, cells: list[Cell]) -> Path:
    """A run folder with these cells; its path."""
    store = folder.parent / STORE
    for one in cells:
        one.save(store / one.cell_key)
    write_manifest(folder, folder.name, [store / one.cell_key for one in cells])
    return folder
