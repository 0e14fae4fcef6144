"""Bytes that a model reads and holds, by hand."""

import torch
from conftest import tiny_model
from torch import nn

from subfit.model.sizes import peak_bytes, step_bytes, weight_bytes

D, VOCABULARY = 32, 101  # of the tiny Llama


def test_decoding_reads_a_row_of_an_embedding_unless_it_is_the_head_too():
    tied, own = tiny_model(), tiny_model(tie_word_embeddings=False)
    assert step_bytes(tied, 5) == weight_bytes(tied)
    assert step_bytes(own, 5) == weight_bytes(own) - 4 * D * (VOCABULARY - 5)


def test_peak_memory_is_weights_and_what_is_held_at_once():
    model = nn.Linear(10, 10, bias=False)

    def run():
        held = torch.empty(1000)
        del held
        return torch.empty(3000), torch.empty(500)

    assert peak_bytes(model, run) == 4 * (100 + 3500)
