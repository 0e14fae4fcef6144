"""TaskScores a model on zero-shot tasks by the log-likelihood that it gives to continuations of contexts.

Contexts and continuations are tokenised as by EleutherAI's lm-evaluation-harness, so that the scores equal its scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subfit.errors import SubFitError
from subfit.evaluation.accuracy import TaskScores
from subfit.evaluation.divergence import token_losses
from subfit.evaluation.tasks import Task, joined
from subfit.progress import Stage

WASTE = 1.5  # times the tokens that its prompts have alone, which a batch has at most

Pair = tuple[list[int], list[int]]  # the tokens of a context and of its continuation


@dataclass(frozen=True)
class Continuation:
    """Tokens that follow a context, of which the last `scored` count; `index` is the pair's in the caller's list."""

    index: int
    tokens: list[int]
    scored: int


@dataclass(frozen=True)
class Prompt:
    """A context (its tokens), and what to run after it."""

    context: tuple[int, ...]
    continuations: list[Continuation]

    def longest(self) -> int:
        return len(self.context) + max(len(c.tokens) for c in self.continuations)


def score_task(model: Any, tokenizer: Any, task: Task, batch_tokens: int) -> TaskScores:
    """Returns which items of a task a model gets right.

    Of several pairs, the one whose continuation has the highest log-likelihood is the model's answer (`acc`), or the one
    with the highest log-likelihood per UTF-8 byte of the continuation (`acc_norm`; the joining space is not counted).
    Of a single pair, the continuation is right if each of its tokens is the likeliest at its place (`acc` alone).

    Args:
        batch_tokens: tokens run at once.

    Raises:
        SubFitError: if a continuation has no token of its own or is longer than the model's context, or the model gives
            NaN.
    """
    pairs = [encode(tokenizer, *pair) for item in task.items for pair in item.pairs]
    try:
        found, greedy = (values.tolist() for values in log_likelihoods(model, pairs, batch_tokens, f"answering {task.name}"))
    except SubFitError as error:
        raise SubFitError(f"task {task.name}: {error}") from error
    correct, correct_norm, gold_log_likelihoods, start = [], [], [], 0
    for item in task.items:
        end = start + len(item.pairs)
        values = found[start:end]
        if item.gold is None:
            correct.append(float(greedy[start]))
        else:
            per_byte = [v / len(text.encode()) for v, (_, text) in zip(values, item.pairs, strict=True)]
            correct.append(float(values.index(max(values)) == item.gold))
            correct_norm.append(float(per_byte.index(max(per_byte)) == item.gold))
        gold_log_likelihoods.append(values[item.gold or 0])
        start = end
    chances = [0.0 if item.gold is None else 1 / len(item.pairs) for item in task.items]
    return TaskScores(task.name, correct, correct_norm or None, sum(chances) / len(chances), gold_log_likelihoods)


def encode(tokenizer: Any, context: str, continuation: str) -> Pair:
    """Returns the tokens of a context and of its continuation, split as lm-evaluation-harness splits them.

    Both are encoded together, and split at the length of the encoded context without its trailing white space, which belongs
    to the continuation: a tokenizer that joins a space to the following word meets it there.
    """
    joint = tokenizer.encode(context + joined(context, continuation), verbose=False)
    start = tokenizer.encode(context.rstrip(), verbose=False)
    return start, joint[len(start) :]


@torch.no_grad()
def log_likelihoods(model: Any, pairs: list[Pair], batch_tokens: int, label: str = "answering") -> tuple[Tensor, Tensor]:
    """Returns the log-likelihood of each continuation given its context, and whether greedy decoding gives it.

    A context with several continuations is run once, and its key-value cache serves all of them; one with a single
    continuation is run with it in one go. Of the contexts of a batch, as much is cached as the shortest has, and the rest
    goes with the continuations, which are padded on the right, where causal attention does not look: nothing is padded on
    the left, so that positions, sliding windows and caches are those of a single sequence in every architecture.

    Args:
        pairs: tokens of contexts and continuations. A context that makes a sequence longer than the model's context is cut
            from the left.
        batch_tokens: tokens run at once; a single context with its continuations may be more.
        label: what the stage is called, see `subfit.progress`.

    Returns:
        Log-likelihoods in nats (pairs), float64, and booleans (pairs).

    Raises:
        SubFitError: if a continuation has no token, or more than the model's context, or the model gives NaN.
    """
    values, greedy = torch.zeros(len(pairs), dtype=torch.float64), torch.zeros(len(pairs), dtype=torch.bool)
    with Stage(label, len(pairs), "continuations") as progress:
        for batch in _batches(_prompts(pairs, model.config.get_text_config()), batch_tokens):
            rows = [row for prompt in batch for row in prompt.continuations]
            for row, logits in zip(rows, _run(model, batch), strict=True):
                gold = torch.tensor(row.tokens[-row.scored :], device=logits.device)
                values[row.index] = -token_losses(logits[None], gold[None]).sum(dtype=torch.float64)
                greedy[row.index] = (logits.argmax(-1) == gold).all()
            progress.advance(len(rows))
    if values.isnan().any():
        raise SubFitError("the model gives NaN logits; its answers are not defined")
    return values, greedy


def _prompts(pairs: list[Pair], config: Any) -> list[Prompt]:
    """What to run, the longest first: the distinct contexts with their continuations."""
    limit = getattr(config, "max_position_embeddings", None)
    shared: dict[tuple[int, ...], list[Continuation]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise SubFitError(f"continuation {index} or its context has no token of its own")
        if limit is not None and len(continuation) > limit:
            raise SubFitError(f"a continuation of {len(continuation)} tokens is longer than the model's context, {limit}")
        kept = context if limit is None else context[-(limit + 1 - len(continuation)) :]
        shared.setdefault(tuple(kept), []).append(Continuation(index, continuation, len(continuation)))
    prompts = []
    for start, continuations in shared.items():
        if len(continuations) == 1:  # there is nothing to share: all but its first token is run as one continuation
            (one,) = continuations
            prompts.append(Prompt(start[:1], [Continuation(one.index, [*start[1:], *one.tokens], one.scored)]))
        else:
            prompts.append(Prompt(start, continuations))
    return sorted(prompts, key=lambda prompt: (prompt.longest(), len(prompt.context)), reverse=True)


def _batches(prompts: list[Prompt], batch_tokens: int) -> Iterator[list[Prompt]]:
    """Groups of consecutive prompts: as many as fit into a batch, while their lengths are similar enough to pad them."""
    batch: list[Prompt] = []
    for prompt in prompts:
        together = [*batch, prompt]
        if batch and _tokens(together) > min(batch_tokens, WASTE * sum(_tokens([p]) for p in together)):
            yield batch
            together = [prompt]
        batch = together
    if batch:
        yield batch


def _shared(batch: list[Prompt]) -> int:
    """How many tokens of each context are run once for all of its continuations."""
    return min(len(prompt.context) for prompt in batch)


def _tokens(batch: list[Prompt]) -> int:
    """The tokens that are run for a batch, with padding."""
    shared, rows = _shared(batch), sum(len(prompt.continuations) for prompt in batch)
    return len(batch) * shared + rows * (max(prompt.longest() for prompt in batch) - shared)


def _run(model: Any, batch: list[Prompt]) -> Iterator[Tensor]:
    """Runs what the contexts of a batch share with their continuations, then the rest on its cache.

    Returns:
        For each continuation, the logits (scored, vocabulary) that predict the tokens of it that count.
    """
    device, shared = next(model.parameters()).device, _shared(batch)
    contexts = torch.tensor([prompt.context[:shared] for prompt in batch], device=device)
    owners = torch.tensor([row for row, prompt in enumerate(batch) for _ in prompt.continuations], device=device)
    rows = [([*prompt.context[shared:], *row.tokens], row.scored) for prompt in batch for row in prompt.continuations]
    longest = max(len(tokens) for tokens, _ in rows)
    padded = torch.tensor([tokens + tokens[-1:] * (longest - len(tokens)) for tokens, _ in rows], device=device)
    given = torch.cat([contexts[owners, -1:], padded[:, :-1]], 1)
    if shared == 1:
        logits = model(given, use_cache=False).logits
    else:
        cache = model.base_model(contexts[:, :-1], use_cache=True).past_key_values
        cache.reorder_cache(owners)  # a row for each continuation
        logits = model(given, past_key_values=cache, use_cache=True).logits
    return (found[len(tokens) - scored : len(tokens)] for (tokens, scored), found in zip(rows, logits, strict=True))
