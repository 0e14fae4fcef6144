"""FLOPs are counted as by hand."""

import torch
from torch import nn

from subfit.fitting.costs import count_flops


def test_attention_on_a_cpu_counts_every_query_with_every_key():
    q, k = torch.rand(2, 3, 5, 8), torch.rand(2, 3, 7, 8)
    with torch.no_grad():
        flops = count_flops(lambda: nn.functional.scaled_dot_product_attention(q, k, k))
    assert flops["Global"] == 2 * (2 * 3 * 5 * 7 * 8) * 2
