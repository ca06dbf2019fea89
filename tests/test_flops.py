"""FLOPs are counted as one counts them by hand."""

import torch
import torch.nn.functional as F

from distill.flops import count_flops


def test_products_and_convolutions_forward_and_backward():
    layer, x = torch.nn.Linear(6, 5), torch.randn(7, 6)
    assert count_flops(lambda: layer(x)) == 2 * 7 * 6 * 5
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * (2 * 7 * 6 * 5)  # forward, and the weight's gradient
    picture, kernel = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    assert count_flops(lambda: F.conv2d(picture, kernel, padding=1)) == 2 * 2 * 4 * 64 * 27


def test_attention_counts_on_a_cpu_with_and_without_a_mask():
    q, k, v = (torch.randn(2, 3, n, 16, requires_grad=True) for n in (8, 10, 10))
    forward = 2 * 2 * 2 * 3 * 8 * 10 * 16
    assert count_flops(lambda: F.scaled_dot_product_attention(q.detach(), k.detach(), v.detach())) == forward
    mask = torch.ones(8, 10, dtype=torch.bool)
    for given in (None, mask):  # backward: the scores once more, and four products
        assert count_flops(lambda given=given: F.scaled_dot_product_attention(q, k, v, given).sum().backward()) == 3.5 * forward
