"""Which device trains and predicts, and whether a CPU computes bfloat16 in hardware."""

from typing import Literal

import torch

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]


def choose_device(choice: DeviceChoice) -> torch.device:
    """Return the wanted device; "auto" takes the first that is there of cuda, mps, cpu.

    Raises:
        ValueError: If the wanted device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[choice]:
        raise ValueError(f"device={choice} is not available here; found {[n for n, ok in available.items() if ok]}.")
    return torch.device(choice)


def cpu_has_bf16() -> bool:
    """Say whether this CPU has bfloat16 instructions; without them autocast is slower than float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe else False
