"""Products of matrices in bfloat16 where the machine has units for them, everything else in float32."""

from __future__ import annotations

import torch

from worldmodel.runtime import fast_bfloat16


def autocast(device: torch.device | str) -> torch.autocast:
    """On CUDA, and on CPUs with AMX; elsewhere a context that changes nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast_bfloat16(torch.device(device)))
