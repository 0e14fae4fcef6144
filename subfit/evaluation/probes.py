"""What a model takes from its context, measured without a data set: copying, recall, and a word that was mentioned before.

Perplexity on text hides what a compressed model loses first, as most tokens of a text can be guessed without looking back.
"""

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from subfit.calibration.repeated import repeated_windows
from subfit.evaluation.intervals import bootstrap_interval
from subfit.evaluation.zero_shot import Pair, encode, log_likelihoods

ITEMS = 32  # of each probe
SEGMENT = 64  # random tokens that are repeated
DISTANCES = (1, 4, 16, 31)  # in pairs of a key and a value, from the query back to the pair that it asks for
NAMES = ("Mary", "John", "Anna", "Peter", "Laura", "David", "Sarah", "Mark", "Emma", "Paul", "Alice", "Robert")
THINGS = ("book", "letter", "key", "cup", "hat", "ring", "map", "coat", "ticket", "flower", "picture", "bottle")
PLACES = ("garden", "station", "kitchen", "market", "library", "harbour", "school", "museum")
STORY = (
    "{who} and {other} met at the {place}. {other} had brought a {thing}, and they talked for a while. "
    "Then {other} gave the {thing} to"
)

Probe = list[Pair]  # the tokens of each item's context, and those to predict


def probes(model: Any, tokenizer: Any, seed: int) -> dict[str, Probe]:
    """Returns the items of each probe by its name.

    `copying`: a segment of random tokens comes again; its tokens but the first are predicted (induction, arXiv 2209.11895).
    `recall, N back`: after pairs of a random key and a random value, the key of the N-th last one asks for its value.
    `last word, mentioned`: a person is named, and named again at the end (as arXiv 2211.00593); `last word, new`: the same
    story with somebody else in the first place, so that the context does not tell the name.

    Args:
        model: whose vocabulary the random tokens are from.
        seed: of what is random; models with the same vocabulary and tokenizer get the same items.
    """
    random_tokens = repeated_windows(model, tokenizer, ITEMS, 1 + 2 * SEGMENT, seed)
    start = random_tokens[:, :1] if tokenizer.bos_token_id is not None else random_tokens[:, :0]
    segments = random_tokens[:, start.shape[1] : start.shape[1] + SEGMENT]
    found = {"copying": [(row + again[:1], again[1:]) for row, again in _rows(torch.cat([start, segments], 1), segments)]}
    for back in DISTANCES:
        key = segments[:, -2 * back, None]
        found[f"recall, {back} back"] = [*_rows(torch.cat([start, segments, key], 1), segments[:, 1 - 2 * back, None])]
    stories = list(_stories(seed))
    return found | {
        "last word, mentioned": [encode(tokenizer, mentioned, who) for mentioned, _, who in stories],
        "last word, new": [encode(tokenizer, new, who) for _, new, who in stories],
    }


def _rows(contexts: Tensor, wanted: Tensor) -> Iterator[Pair]:
    return zip(contexts.tolist(), wanted.tolist(), strict=True)


def _stories(seed: int) -> Iterator[tuple[str, str, str]]:
    """A story whose last word is missing, the same without this word in it, and the word."""
    generator = random.Random(seed)
    for _ in range(ITEMS):
        who, other, third = generator.sample(NAMES, 3)
        told = {"other": other, "place": generator.choice(PLACES), "thing": generator.choice(THINGS)}
        yield STORY.format(who=who, **told), STORY.format(who=third, **told), who


def measure_probes(
    model: Any, tokenizer: Any, batch_tokens: int, seed: int, reference: Any = None
) -> dict[str, dict[str, Any]]:
    """Returns the loss of a model on each probe, in nats per token, beside that of a reference.

    Args:
        batch_tokens: tokens run at once.
        seed: of the items, and of the resampling.
        reference: a model with the same vocabulary, such as the dense one.

    Returns:
        By probe: `items`, `loss`, `loss_interval` and, with a reference, `reference_loss`, `difference` and
        `difference_interval`, the 95 % bootstrap interval of the difference over items.

    Raises:
        SubFitError: if a model gives NaN.
    """
    made = probes(model, tokenizer, seed)
    pairs = [pair for items in made.values() for pair in items]
    models = [model] if reference is None else [model, reference]
    losses = [-log_likelihoods(each, pairs, batch_tokens, "answering probes")[0] for each in models]
    counts = torch.tensor([len(wanted) for _, wanted in pairs], dtype=torch.float64)
    ends = [0, *torch.tensor([len(items) for items in made.values()]).cumsum(0).tolist()]
    parts = [slice(*ends) for ends in pairwise(ends)]
    return {
        name: _described([each[part] for each in losses], counts[part], seed) for name, part in zip(made, parts, strict=True)
    }


def _described(losses: list[Tensor], counts: Tensor, seed: int) -> dict[str, Any]:
    """What is said of one probe: of the model, and of the reference, if there is one."""
    own, *reference = losses
    described = {
        "items": len(own),
        "loss": float(own.sum() / counts.sum()),
        "loss_interval": bootstrap_interval(own, counts, seed),
    }
    for dense in reference:
        described["reference_loss"] = float(dense.sum() / counts.sum())
        described["difference"] = float((own - dense).sum() / counts.sum())
        described["difference_interval"] = bootstrap_interval(own - dense, counts, seed)
    return described
