"""Two clashes among our requirements, settled before any of them is imported.

Call `prepare()` first in every function or process that imports torch, transformers,
transformer_lens, sae_lens or sae_bench.
"""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

ENVIRONMENT = {
    # sae_bench 0.6.0 calls a @beartype function from a @jaxtyped one with other sizes: beartype
    # 0.23 then rejects valid input (`train_sklearn_probe`), so sizes are not checked at run time
    "JAXTYPING_DISABLE": "1",
    # tokenizers warns, and may deadlock, when a process forks after using its thread pool
    "TOKENIZERS_PARALLELISM": "false",
    # a progress bar per file would hide ours
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # an API key in the environment must not start uploads
    "WANDB_MODE": "disabled",
}


def prepare() -> None:
    """Set the environment and hide a torchvision that cannot load. Safe to call often."""
    os.environ["JAXTYPING_DISABLE"] = ENVIRONMENT["JAXTYPING_DISABLE"]
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "torchvision" not in sys.modules and not torchvision_loads():
        # makes find_spec answer None, so that transformers goes on without it
        sys.modules["torchvision"] = None  # type: ignore[assignment]


@cache
def torchvision_loads() -> bool:
    """Whether torchvision's operators load beside the installed torch; False too if it is absent.

    Beside a CPU-only torch the usual build does not: it wants CUDA libraries.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    import torch

    libraries = list(Path(spec.submodule_search_locations[0]).glob("_C*"))
    try:
        for library in libraries:  # what torchvision does first when it is imported
            torch.ops.load_library(str(library))
    except (ImportError, OSError):
        return False
    return bool(libraries)
