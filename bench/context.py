"""What suites share while they run, models, data, seeds, folders, and sae_bench using them."""

import itertools
import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cache import Cache
from bench.datasets import Hub
from bench.keys import source_key, versions
from bench.models import DType, ModelSpec, check_pair, load_model, on_side, weights_key
from bench.suite import Engine, SaeHandle, Side

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer

    from bench.checkpoint import Measured

TEXT = "Skylion007/openwebtext"
L0_TEXTS = 64
TEXTS_PER_CALL = 32
MEASURED_CONTEXT = 128
"""Tokens of each text that are looked at."""
LOAD_DATASET = (
    "sae_bench.sae_bench_utils.dataset_utils",
    "sae_bench.evals.unlearning.utils.metrics",
    "sae_bench.evals.unlearning.utils.feature_activation",
    "sae_lens.training.activations_store",
)
"""Modules that hold `datasets.load_dataset` under their own name."""
FENCE = "GIT_CEILING_DIRECTORIES"
"""Folders above which git looks for no repository."""
_ABSENT = object()


@dataclass
class EvalContext:
    """One evaluation process: which model and data, which seed, and where it may write."""

    spec: ModelSpec
    """The model that the SAEs were trained on."""
    hub: Hub
    seed: int
    work: Path
    """Where the suite runs: the process's working directory while sae_bench is called."""
    artifacts: Path
    """Where sae_bench keeps what it computes once and reuses for every SAE."""
    device: str = "cpu"
    dtype: DType = "float32"
    engine: Engine = "reference"
    cache_gb: float = 0.0
    """Most disk space for what is shared by all SAEs, seeds and runs; 0 keeps none."""
    cache_dir: Path | None = None
    """Where it lies; None = below `artifacts`."""
    _models: dict[Side, "HookedTransformer"] = field(default_factory=dict, repr=False)

    @cached_property
    def cache(self) -> Cache:
        """What is computed once for all SAEs."""
        return Cache(self.cache_dir or self.artifacts / "shared", self.cache_gb)

    @cached_property
    def data_revision(self) -> str:
        """What tells two states of the data apart."""
        return self.hub.revision

    def content(self, side: Side, made_by: str, **settings: Any) -> dict[str, Any]:
        """The cache key of what the code in file `made_by` computes with the model of `side`.

        `settings` are JSON-like: all that decides it beside model, data, precision, packages and
        the source code.
        """
        return {
            "model": weights_key(self.model_spec(side)),
            "data_revision": self.data_revision,
            "device": self.device,
            "dtype": self.dtype,
            "versions": versions(),
            "source": source_key(Path(made_by)),
            **settings,
        }

    def model_spec(self, side: Side) -> ModelSpec:
        """The model of the pair that `side` means. Raises UserError if there is none."""
        return on_side(self.spec, side)

    def model(self, side: Side) -> "HookedTransformer":
        """The model of `side`, without hooks, loaded once. Raises UserError for a bad pair."""
        if side not in self._models:
            spec = self.model_spec(side)
            if spec != self.spec:
                check_pair(self.spec, spec)
            self._models[side] = load_model(spec, self.device, self.dtype)
        model = self._models[side]
        model.reset_hooks()
        return model


@contextmanager
def sae_bench_on(ctx: EvalContext, side: Side) -> Iterator["HookedTransformer"]:
    """sae_bench on our model, our data and our seed, in our folder, for the time of the block.

    sae_bench loads its model and data itself and leaves gradients switched off and seeds anywhere;
    here it is handed both, and everything global is put back afterwards.
    """
    import jaxtyping
    from transformer_lens import HookedTransformer

    model = ctx.model(side)
    with ExitStack() as stack:
        # JAXTYPING_DISABLE is read once, too early where something else imported jaxtyping first
        stack.enter_context(patched(jaxtyping.config, "jaxtyping_disable", True))
        stack.enter_context(process_state(ctx.seed))
        stack.enter_context(working_directory(ctx.work))
        stack.enter_context(reading(ctx, *LOAD_DATASET))
        loader = classmethod(lambda cls, *args, **kwargs: ctx.model(side))
        stack.enter_context(patched(HookedTransformer, "from_pretrained_no_processing", loader))
        yield model


@contextmanager
def reading(ctx: EvalContext, *modules: str) -> Iterator[None]:
    """`load_dataset` in these modules reads our data for the time of the block."""
    import importlib

    with ExitStack() as stack:
        for name in modules:
            module = importlib.import_module(name)
            stack.enter_context(patched(module, "load_dataset", ctx.hub.load_dataset))
        yield


@contextmanager
def process_state(seed: int) -> Iterator[None]:
    """Seed every generator that sae_bench draws from; restore them and the gradient mode after."""
    import numpy as np
    import torch

    # torch.manual_seed reseeds every device: CUDA's states are ours alone in a suite's process
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()
    grad = torch.is_grad_enabled()
    try:
        seed_all(seed)
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.set_rng_state(saved[2])
        torch.set_grad_enabled(grad)


def seed_all(seed: int) -> None:
    """Seed random, numpy and torch: sae_bench draws from all three, and seeds at most two."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """sae_bench reads and writes below the working directory; give it one of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    before, fence = Path.cwd(), os.environ.get(FENCE)
    os.chdir(folder)
    # it asks git for its version, which here would be the commit of whatever lies around us
    os.environ[FENCE] = str(Path.cwd().parent)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop(FENCE)
        if fence is not None:
            os.environ[FENCE] = fence


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for the time of the block."""
    before = vars(owner).get(name, _ABSENT)  # the raw attribute: a classmethod stays one
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def sae_bench_result(folder: Path, label: str, output_class: type) -> dict[str, Any]:
    """The JSON that sae_bench wrote for one SAE, accepted by its own output class.

    Raises FileNotFoundError if there is none, pydantic's ValidationError if the class refuses it.
    """
    from pydantic import TypeAdapter

    raw = json.loads((folder / f"{label}_custom_sae_eval_results.json").read_text())
    TypeAdapter(output_class).validate_python(raw)
    return raw


def is_control(handle: SaeHandle) -> bool:
    """True for a control, whose degeneracy is its purpose."""
    return handle.info.get("role") == "control"


def l0(ctx: EvalContext, handle: SaeHandle) -> float:
    """Mean active latents per token: as measured when it was trained, else on some general text."""
    known = handle.info.get("l0")
    if known is not None:
        return float(known)
    rows = ctx.hub.load_dataset(TEXT, split="train", streaming=True)
    texts = [row["text"] for row in itertools.islice(rows, L0_TEXTS)]
    return measured_on(ctx, "base", handle.sae, texts).l0


def measured_on(ctx: EvalContext, side: Side, sae: Any, texts: list[str]) -> "Measured":
    """L0 and explained variance of an SAE on the model of `side` reading `texts`."""
    from bench.checkpoint import measure

    x = activations_on(ctx, side, sae.cfg.metadata.hook_name, texts)
    return measure(sae, x.to(sae.dtype))


def activations_on(ctx: EvalContext, side: Side, hook_name: str, texts: list[str]) -> "Tensor":
    """Activations [n, d_in] of the model of `side` reading `texts`, special tokens left out.

    A text that starts with BOS gets no second one.
    """
    import torch

    model = ctx.model(side)
    tokenizer: Any = model.tokenizer
    special = torch.tensor(tokenizer.all_special_ids, device=ctx.device)
    with_bos = not texts[0].startswith(tokenizer.bos_token)
    stop = int(hook_name.split(".")[1]) + 1
    kept = []
    with torch.no_grad():
        for start in range(0, len(texts), TEXTS_PER_CALL):
            batch = texts[start : start + TEXTS_PER_CALL]
            tokens = model.to_tokens(batch, prepend_bos=with_bos)[:, :MEASURED_CONTEXT]
            cache = model.run_with_cache(tokens, names_filter=[hook_name], stop_at_layer=stop)[1]
            kept.append(cache[hook_name][~torch.isin(tokens, special)])
    return torch.cat(kept)
