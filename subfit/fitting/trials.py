"""The loss, and the KL divergence from the dense model, with bypasses in the places of some sites on trial."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration
from subfit.evaluation.divergence import divergence_sum, next_token_loss_sum
from subfit.fitting.one_shot import fit_one_shot
from subfit.fitting.substitutes import Plan
from subfit.model.replacing import BypassReplacement
from subfit.model.residual_stream import ResidualStream
from subfit.model.submodules import KINDS, Kind, Site
from subfit.progress import Stage


class Trials:
    """A bypass for every site, or every one of a kind, fitted on the dense stream, which can be tried in any combination.

    A trial resumes from the stream that enters the first layer of its sites: the layers before it are run once for all
    trials. Results are remembered, for the same search within another budget.

    Args:
        calibration: the model and its calibration tokens, all of which are fitted on.
        bypass: how every site is bypassed on trial.
        tokens: (windows, length), what a trial is measured on: many short windows show more of the data than few long ones.
            The reference's logits are held for them, in the model's data type.
        kinds: of the sites that a bypass is fitted for.
    """

    def __init__(self, calibration: Calibration, bypass: Bypass, tokens: Tensor, kinds: Collection[Kind] = KINDS):
        self.calibration = calibration
        plan: Plan = {site: bypass for site in calibration.sites if site.kind in kinds}
        self.replacements = {replacement.site: replacement for replacement in fit_one_shot(calibration, plan)}
        self.tokens = tokens
        stream = self._run_to_end(self._start())
        with torch.no_grad():
            self._reference = [stream.logits(batch) for batch in stream.batches]
        self._known: dict[tuple[str, frozenset[Site]], float] = {}  # by the measure and all sites that were bypassed

    @classmethod
    def of(cls, calibration: Calibration, bypass: Bypass, windows: int, length: int) -> "Trials":
        """Returns trials on so many calibration windows, evenly spaced, each cut to its first `length` tokens.

        They are fitted on first use: a scorer and a selector that ask for the same share them.

        Only the latest are kept, as they hold the logits of the reference.
        """
        key = (type(bypass), repr(bypass), windows, length)
        if calibration.memory.get(cls, (None,))[0] != key:
            calibration.memory.pop(cls, None)
            calibration.memory[cls] = (key, cls(calibration, bypass, calibration.subset(windows, length)))
        return calibration.memory[cls][1]

    @torch.no_grad()
    def costs(self, chosen: Collection[Site], pool: Iterable[Collection[Site]], measure: str = "kl") -> list[float]:
        """Returns the loss or the divergence with the `chosen` sites and one group of the `pool` bypassed, for each group.

        Args:
            chosen: sites that are bypassed in every trial.
            pool: groups of further sites; a trial resumes from the first layer of its group.
            measure: `kl`, the divergence from the dense model, or `loss`, that of the next token; in nats, mean over tokens.
        """
        wanted = [(measure, frozenset((*chosen, *group))) for group in pool]
        added = {t: [self.replacements[s] for s in t[1].difference(chosen)] for t in wanted if t not in self._known}
        first = {trial: min((r.site.layer for r in replacements), default=0) for trial, replacements in added.items()}
        for site in chosen:
            self.replacements[site].on()
        try:
            stream = self._start()
            with Stage("trying bypasses", len(first), "trials") as progress:
                for trial in sorted(first, key=first.__getitem__):
                    while stream.position < first[trial]:
                        stream.step()
                    self._known[trial] = self._try(added[trial], stream, measure)
                    progress.advance()
        finally:
            for replacement in self.replacements.values():
                replacement.off()
        return [self._known[trial] for trial in wanted]

    def _try(self, replacements: list[BypassReplacement], stream: ResidualStream, measure: str) -> float:
        """The measure with some further replacements on, from a stream that none of them has changed yet."""
        for replacement in replacements:
            replacement.on()
        found = self._measure(self._run_to_end(stream.fork()), measure)
        for replacement in replacements:
            replacement.off()
        return found

    def _start(self) -> ResidualStream:
        return ResidualStream(self.calibration.model, self.tokens, self.calibration.batch_size)

    def _run_to_end(self, stream: ResidualStream) -> ResidualStream:
        while stream.position < len(stream.layers):
            stream.step()
        return stream

    def _measure(self, stream: ResidualStream, measure: str) -> float:
        total = 0.0
        for batch, reference in zip(stream.batches, self._reference, strict=True):
            logits = stream.logits(batch)
            total += float(
                divergence_sum(logits, reference) if measure == "kl" else next_token_loss_sum(logits, stream.tokens[batch])
            )
        return total / self.tokens[:, 1:].numel()


def trial_costs(calibration: Calibration, bypass: Bypass, windows: int, length: int, measure: str) -> dict[Site, float]:
    """Returns the loss or the divergence with each site alone bypassed; see `Trials.costs`."""
    trials = Trials.of(calibration, bypass, windows, length)
    costs = trials.costs((), [[site] for site in calibration.sites], measure)
    return dict(zip(calibration.sites, costs, strict=True))
