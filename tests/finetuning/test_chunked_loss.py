"""The chunked losses against the plain formulas, and what they keep in memory."""

import pytest
import torch
from conftest import FAMILIES, tiny_model, tiny_tokens

from subfit.finetuning import chunked_loss
from subfit.finetuning.losses import Batch, distillation_loss


def outputs(model, tokens, seed):
    """What the body gives, moved a little, as a body with replacements would."""
    with torch.no_grad():
        output = model.base_model(tokens, use_cache=False)
    noise = torch.randn(output.last_hidden_state.shape, generator=torch.Generator().manual_seed(seed))
    output.last_hidden_state = output.last_hidden_state + 0.3 * noise.to(output.last_hidden_state.dtype)
    return output


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.7, 0.4)])
def test_the_chunks_give_the_plain_formulas_and_their_gradient(family, weights, monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK", 7)  # does not divide the positions
    model, tokens = tiny_model(family), tiny_tokens(3, 12)
    teacher, student = outputs(model, tokens, 0), outputs(model, tokens, 1)
    model.double()  # only now: the experts of Mixtral do not run in float64
    for output in (teacher, student):
        output.last_hidden_state = output.last_hidden_state.double()
    hidden = student.last_hidden_state.requires_grad_()
    loss, terms = distillation_loss(Batch(model, tokens, student, teacher, [], []), *weights)
    (gradient,) = torch.autograd.grad(loss * 3, hidden)

    logits = model.get_output_embeddings()(hidden)
    reference = model.get_output_embeddings()(teacher.last_hidden_state)
    q, p = (x[:, :-1].log_softmax(-1) for x in (logits, reference))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    next_token = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    expected = weights[0] * kl + weights[1] * next_token
    dense = torch.nn.functional.cross_entropy(reference[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(terms, torch.stack([kl, next_token, dense]).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected * 3, hidden)[0], rtol=1e-8, atol=1e-12)


def test_the_heads_own_changes_of_the_logits_count():
    """Gemma bends its logits after the last matrix: the chunks must give what the whole model gives."""
    model, tokens = tiny_model("gemma3_text", final_logit_softcapping=2.0), tiny_tokens(2, 10)
    with torch.no_grad():
        output = model.base_model(tokens, use_cache=False)
        given = chunked_loss.logits_of_hidden(model, output, output.last_hidden_state.flatten(0, 1))
        torch.testing.assert_close(given, model(tokens).logits.flatten(0, 1))


def test_memory_does_not_grow_with_the_vocabulary_times_the_positions():
    """No tensor as large as all logits is alive at any moment, nor kept for the backward pass."""
    model, tokens = tiny_model(vocab_size=5000), tiny_tokens(8, 129)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.append(max((x.numel() for x in [result] if isinstance(x, torch.Tensor)), default=0))
            return result

    teacher, student = outputs(model, tokens, 0), outputs(model, tokens, 1)
    student.last_hidden_state.requires_grad_()
    model.requires_grad_(False)
    with Watch():
        distillation_loss(Batch(model, tokens, student, teacher, [], []), 1.0, 0.0)[0].backward()
    assert max(seen) <= chunked_loss.CHUNK * 5000 < 8 * 128 * 5000 / 7
