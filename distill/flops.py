"""FLOPs that were counted, not estimated: what a call multiplies, whatever else runs on the machine meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query, key, value, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad_out, query, key, value, *_, **__) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""FLOPs, by the shapes of its arguments, of attention as a CPU computes it: torch's own counter takes it for nothing."""


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of `call()`: of products of matrices, convolutions and attention, forward and backward; a multiply-add is two.

    What works value by value is not counted, nor is a mask: attention costs as much with one as without.
    """
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        call()
    return counter.get_total_flops()
