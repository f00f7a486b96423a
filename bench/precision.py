"""Where bfloat16 can be computed with, and not only stored."""


def problem(device: str, dtype: str) -> str | None:
    """Why this precision is of no use on this device; None if it is.

    A CPU without instructions for bfloat16 multiplies matrices in it several hundred times slower
    than in float32 (170 to 600 times, measured on AVX2).
    """
    if dtype != "bfloat16" or device != "cpu" or cpu_has_bfloat16():
        return None
    return (
        f"dtype={dtype!r}: this CPU has no arithmetic for it and would be hundreds of times "
        "slower; use float32, or a GPU"
    )


def cpu_has_bfloat16() -> bool:
    """Whether torch finds AVX512-BF16 or AMX here, or a CPU that is not an x86."""
    import platform

    import torch

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True  # not measured: nothing to refuse it on
    found = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return any(is_supported() for is_supported in found)
