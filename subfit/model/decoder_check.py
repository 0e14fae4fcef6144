"""Checks before any work, in seconds, that a model is a decoder as SubFit takes it to be."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from subfit.model.discovery import ROUNDING
from subfit.model.finalizing import start_counter
from subfit.model.modeling_subfit import Zero
from subfit.model.processes import full_tensor
from subfit.model.recording import probe_tokens
from subfit.model.refusals import refusal, refused_if_failing
from subfit.model.replacing import BypassReplacement, turn_off
from subfit.model.residual_stream import ResidualStream
from subfit.model.sizes import cache_size
from subfit.model.submodules import TITLES, Site

TOKENS = 3  # of which the last is decoded with a cache


@torch.no_grad()
def check_decoder(model: Any, sites: Sequence[Site]) -> None:
    """Runs a model on a few tokens in the ways that a compression will.

    Layer by layer it must compute what it computes as a whole; without the submodules of each type, and without all, it must
    run, and compute with a cache what it computes without; and its cache must be one whose size can be read.

    Raises:
        SubFitError: if one of these does not hold, with what was found.
    """
    tokens = probe_tokens(model, TOKENS)
    with refused_if_failing(model, "layer by layer"):
        windows = torch.cat([tokens, tokens.flip(1)])  # one after the other, so that nothing of one is used for the other
        stream = ResidualStream(model, windows, 1)
        for _ in stream.layers:
            stream.step()
        found = max(
            _distance(stream.logits(batch), model(windows[batch], use_cache=False).logits) for batch in stream.batches
        )
    if found > ROUNDING:
        raise refusal(
            model,
            "layer by layer",
            f"it computes something else than as a whole (error {found:.2g}): values flow beside the stream",
        )
    with refused_if_failing(model, "for the size of its cache"):
        cache_size(model)
    kinds = list(dict.fromkeys(site.kind for site in sites))
    for out in [*([kind] for kind in kinds), kinds]:
        what = f"without its {' and '.join(f'{TITLES[kind]}s' for kind in out)}"
        with refused_if_failing(model, what), _without([site for site in sites if site.kind in out], model):
            found = _error_of_cache(model, tokens)
        if found > ROUNDING and _error_of_cache(model, tokens) <= ROUNDING:
            raise refusal(model, what, f"it computes something else with a cache than without (error {found:.2g})")


@contextmanager
def _without(sites: list[Site], model: Any) -> Iterator[None]:
    """Within the context, nothing is in the place of some sites."""
    replacements = [BypassReplacement(model, site, Zero(), "nothing") for site in sites]
    for replacement in replacements:
        replacement.on()
    try:
        start_counter(model, [its.stand_in for its in replacements if its.stand_in is not None])
        yield
    finally:
        turn_off(replacements)


def _error_of_cache(model: Any, tokens: Tensor) -> float:
    """The relative error of the last logits with a cache; 0 if the model makes none."""
    output = model(tokens[:, :-1], use_cache=True)
    name = next((name for name, value in output.items() if isinstance(value, Cache)), None)
    if name is None:
        return 0.0
    given = {name: output[name]}
    if "position_ids" in inspect.signature(model.forward).parameters:  # some, such as Bamba, count from 0 without
        given["position_ids"] = torch.full_like(tokens[:, -1:], tokens.shape[1] - 1)
    cached = model(tokens[:, -1:], use_cache=True, **given).logits
    return _distance(cached, model(tokens, use_cache=False).logits[:, -1:])


def _distance(found: Tensor, expected: Tensor) -> float:
    a, b = full_tensor(found).double(), full_tensor(expected).double()
    return float((a - b).norm() / b.norm())
