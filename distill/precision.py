"""Products of matrices in bfloat16 where the machine has units for them, everything else in float32."""

from __future__ import annotations

import torch


def autocast(device: torch.device | str) -> torch.autocast:
    """On CUDA, and on CPUs with AMX; elsewhere a context that changes nothing."""
    kind = torch.device(device).type
    fast = kind == "cuda" or (kind == "cpu" and torch.cpu._is_amx_tile_supported())
    return torch.autocast(kind, torch.bfloat16, enabled=fast)
