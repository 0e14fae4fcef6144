"""The loss, and the KL divergence from the dense model, with bypasses in the places of some sites on trial."""

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration
from subfit.calibration.repeated import repeated_segments
from subfit.errors import SubFitError
from subfit.evaluation.divergence import divergence_sum, next_token_loss_sum
from subfit.fitting.one_shot import fit_one_shot
from subfit.fitting.substitutes import Plan
from subfit.model.replacing import BypassReplacement
from subfit.model.residual_stream import ResidualStream
from subfit.model.submodules import KINDS, Kind, Site
from subfit.progress import Stage

K = TypeVar("K", bound=Hashable)  # what a bypass on trial is called


class Trials(Generic[K]):
    """Bypasses that were fitted on the dense stream, and can be tried in any combination, no two of them at one site.

    A trial resumes from the stream that enters the first layer of its sites: the layers before it are run once for all
    trials. Results are remembered, for the same search within another budget.

    Args:
        calibration: the model and its calibration tokens.
        replacements: the bypasses, switched off, by what they are called: their sites, say.
        tokens: (windows, length), what a trial is measured on: many short windows show more of the data than few long ones.
            The reference's logits are held for them, in the model's data type.
        copying: adds so many times the same measure on the second halves of as many windows of random tokens, which repeat
            the first halves: what the model loses of copying from the context. The tokens are from the calibration's, and
            always the same.

    Raises:
        SubFitError: if `copying` is negative, or the windows are too short for it.
    """

    def __init__(
        self,
        calibration: Calibration,
        replacements: Mapping[K, BypassReplacement],
        tokens: Tensor,
        copying: float = 0.0,
    ):
        check_copying(copying, tokens.shape[1])
        self.replacements = dict(replacements)
        self.tokens = tokens
        self._windows = [_Windows(calibration, tokens)]
        if copying:
            repeated = repeated_segments(calibration.tokens.unique(), len(tokens), tokens.shape[1], seed=0)
            self._windows.append(_Windows(calibration, repeated, copying, first=-(-tokens.shape[1] // 2)))
        self._known: dict[tuple[str, frozenset[K]], float] = {}  # by the measure and all bypasses that were in place

    @classmethod
    def of(cls, calibration: Calibration, bypass: Bypass, windows: int, length: int, copying: float = 0.0) -> "Trials[Site]":
        """Returns trials of a bypass at every site, on evenly spaced calibration windows, cut to the first `length` tokens.

        They are fitted on first use: a scorer and a selector that ask for the same share them.

        Only the latest are kept, as they hold the logits of the reference.
        """
        key = (type(bypass), repr(bypass), windows, length, copying)
        if calibration.memory.get(cls, (None,))[0] != key:
            calibration.memory.pop(cls, None)
            bypassed = fitted_everywhere(calibration, bypass)
            calibration.memory[cls] = (key, Trials(calibration, bypassed, calibration.subset(windows, length), copying))
        return calibration.memory[cls][1]

    @torch.no_grad()
    def costs(self, chosen: Collection[K], pool: Iterable[Collection[K]], measure: str = "kl") -> list[float]:
        """Returns the loss or the divergence with the `chosen` bypasses and each group of the `pool` in place.

        Args:
            chosen: bypasses that are in place in every trial.
            pool: groups of further ones; a trial resumes from the first layer of its group.
            measure: `kl`, the divergence from the dense model, or `loss`, that of the next token; in nats, mean over tokens.
        """
        wanted = [(measure, frozenset((*chosen, *group))) for group in pool]
        added = {t: [self.replacements[name] for name in t[1].difference(chosen)] for t in wanted if t not in self._known}
        first = {trial: min((r.site.layer for r in replacements), default=0) for trial, replacements in added.items()}
        for name in chosen:
            self.replacements[name].on()
        try:
            streams = [windows.start() for windows in self._windows]
            with Stage("trying bypasses", len(first), "trials") as progress:
                for trial in sorted(first, key=first.__getitem__):
                    for stream in streams:
                        _run_to(stream, first[trial])
                    self._known[trial] = self._try(added[trial], streams, measure)
                    progress.advance()
        finally:
            for replacement in self.replacements.values():
                replacement.off()
        return [self._known[trial] for trial in wanted]

    def _try(self, replacements: list[BypassReplacement], streams: list[ResidualStream], measure: str) -> float:
        """The measure with some further replacements on, from streams that none of them has changed yet."""
        for replacement in replacements:
            replacement.on()
        found = self._measure(streams, measure)
        for replacement in replacements:
            replacement.off()
        return found

    def _measure(self, streams: list[ResidualStream], measure: str) -> float:
        pairs = zip(self._windows, streams, strict=True)
        return sum(windows.measure(_run_to(stream.fork(), len(stream.layers)), measure) for windows, stream in pairs)


class _Windows:
    """Windows that trials are measured on, with the logits of the reference.

    Args:
        calibration: the model, in which nothing is bypassed now.
        tokens: (windows, length).
        weight: what the measure on them is multiplied by.
        first: position of the first token that others are predicted after.
    """

    def __init__(self, calibration: Calibration, tokens: Tensor, weight: float = 1.0, first: int = 0):
        self._calibration, self._tokens, self._weight, self._first = calibration, tokens, weight, first
        stream = self.start()
        _run_to(stream, len(stream.layers))
        with torch.no_grad():
            self._reference = [stream.logits(batch)[:, first:].contiguous() for batch in stream.batches]

    def start(self) -> ResidualStream:
        """Returns the stream of the windows before the first layer."""
        return ResidualStream(self._calibration.model, self._tokens, self._calibration.batch_size)

    def measure(self, stream: ResidualStream, measure: str) -> float:
        """Returns the weighted mean of a measure over the predicted tokens, from the stream after the last layer."""
        total = 0.0
        for batch, reference in zip(stream.batches, self._reference, strict=True):
            logits, tokens = stream.logits(batch)[:, self._first :], stream.tokens[batch, self._first :]
            total += float(divergence_sum(logits, reference) if measure == "kl" else next_token_loss_sum(logits, tokens))
        return self._weight * total / self._tokens[:, self._first + 1 :].numel()


def _run_to(stream: ResidualStream, layer: int) -> ResidualStream:
    """Moves a stream on until it enters a layer; returns it."""
    while stream.position < layer:
        stream.step()
    return stream


def fitted_everywhere(
    calibration: Calibration, bypass: Bypass, kinds: Collection[Kind] = KINDS
) -> dict[Site, BypassReplacement]:
    """Returns a bypass at every site of some kinds, fitted on all calibration tokens of the dense model, switched off."""
    plan: Plan = {site: bypass for site in calibration.sites if site.kind in kinds}
    return {replacement.site: replacement for replacement in fit_one_shot(calibration, plan)}


def check_copying(copying: float, length: int) -> None:
    """Raises SubFitError if a weight of copying is negative, or windows of this length have nothing to copy."""
    if not copying >= 0 or (copying and length < 4):
        raise SubFitError(f"copying is {copying} and length {length}; give 0 or more, and with copying at least 4 tokens")


def trial_costs(
    calibration: Calibration, bypass: Bypass, windows: int, length: int, measure: str, copying: float = 0.0
) -> dict[Site, float]:
    """Returns the loss or the divergence with each site alone bypassed; see `Trials.costs`."""
    trials = Trials.of(calibration, bypass, windows, length, copying)
    costs = trials.costs((), [[site] for site in calibration.sites], measure)
    return dict(zip(calibration.sites, costs, strict=True))
