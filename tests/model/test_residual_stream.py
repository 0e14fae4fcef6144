import pytest
import torch
from architectures import tiny_model_of
from conftest import FAMILIES, tiny_model, tiny_tokens
from torch.utils._pytree import tree_leaves

from subfit.errors import SubFitError
from subfit.model.residual_stream import ResidualStream


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layer_by_layer_equals_the_models_own_forward(family):
    model, tokens = tiny_model(family), tiny_tokens(5)
    expected = model(tokens, output_hidden_states=True).hidden_states
    stream = ResidualStream(model, tokens, batch_size=2)  # the last batch is smaller
    for layer in range(len(stream.layers)):
        torch.testing.assert_close(stream.hidden, expected[layer])
        for _ in stream.advance():
            pass
    assert stream.position == 4
    for batch in stream.batches:
        torch.testing.assert_close(stream.logits(batch), model(tokens[batch]).logits)


@torch.no_grad()
def test_a_fork_moves_on_its_own():
    stream = ResidualStream(tiny_model(), tiny_tokens(4), batch_size=2)
    fork = stream.fork()
    start = stream.hidden.clone()
    for _ in stream.advance():
        pass
    assert (stream.position, fork.position) == (1, 0)
    assert torch.equal(fork.hidden, start) and not torch.equal(stream.hidden, start)


@torch.no_grad()
def test_nan_in_the_model_is_reported_where_it_arises():
    model = tiny_model()
    model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    stream = ResidualStream(model, tiny_tokens(2), batch_size=2)
    with pytest.raises(SubFitError, match="after layer 2 has NaN"):
        for _ in range(4):
            for _ in stream.advance():
                pass


def test_the_model_is_left_as_it_was():
    model, tokens = tiny_model(), tiny_tokens(2)
    with torch.no_grad():
        before = model(tokens).logits
        ResidualStream(model, tokens, batch_size=1)
        assert torch.equal(model(tokens).logits, before)


@torch.no_grad()
def test_what_depends_on_the_tokens_is_carried_on_for_each_batch():
    """Gemma 4 E2B: inputs for each layer, and keys and values that later layers share."""
    model, tokens = tiny_model_of("gemma4_text"), tiny_tokens(5)
    expected = model(tokens, output_hidden_states=True).hidden_states
    stream = ResidualStream(model, tokens, batch_size=2)
    fork = stream.fork()
    for layer in range(4):
        torch.testing.assert_close(stream.hidden, expected[layer])
        stream.step()
    for batch in stream.batches:
        torch.testing.assert_close(stream.logits(batch), model(tokens[batch]).logits)
    with pytest.raises(SubFitError, match="depend on the tokens"):
        fork.apply(fork.layers[0], fork.hidden[:1])
    model.model.layers[1].self_attn.k_proj.weight.mul_(2)  # a fork has keys of its own
    for _ in fork.layers:
        fork.step()
    torch.testing.assert_close(fork.logits(fork.batches[0]), model(tokens[:2]).logits)


def test_memory_does_not_hold_what_each_layer_gets_for_each_token():
    """Arguments of one batch are kept, however many batches there are."""
    model = tiny_model_of("gemma4_text")
    sizes = [_held(ResidualStream(model, tiny_tokens(windows), batch_size=2)) for windows in (2, 8)]
    assert sizes[0] == sizes[1]


def _held(stream):
    """The number of values in the arguments that a stream keeps."""
    kept = tree_leaves([stream._arguments, [dict(m) for named in stream._carried.values() for m in named.values()]])
    return sum(value.numel() for value in kept if isinstance(value, torch.Tensor))
