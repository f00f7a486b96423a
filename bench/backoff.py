"""Out of memory on the device: the same numbers in smaller batches."""

import gc
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.suite import Suite

ON_A_CPU = ("can't allocate memory", "not enough memory")
"""What torch's CPU allocator says, as a plain RuntimeError."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the device had too little memory, also where the error came of such a one."""
    if error is None:
        return False
    torch = sys.modules.get("torch")  # where it was never imported, it never ran out of memory
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error) for text in ON_A_CPU):
        return True
    return is_out_of_memory(error.__cause__)


def can_lower(suite: "Suite") -> bool:
    """Whether the suite has a batch size that can be halved without changing a number."""
    return any(getattr(suite.cfg, name) > 1 for name in suite.batch_sizes)


def with_smaller_batches(
    suite: "Suite", adjusted: dict[str, int]
) -> "tuple[Suite, dict[str, int]]":
    """The suite with its batch sizes halved, and all that was lowered so far with its values."""
    lower = {name: max(1, getattr(suite.cfg, name) // 2) for name in suite.batch_sizes}
    return type(suite)(replace(suite.cfg, **lower)), {**adjusted, **lower}


def free_memory() -> None:
    """Give back what the failed attempt held."""
    gc.collect()  # tracebacks hold their frames' tensors, and frames their tracebacks
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
