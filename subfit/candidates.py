"""What it would cost to replace a site: the KL divergence from the dense model, with a fitted bypass in its place."""

from collections.abc import Collection, Iterable

import torch
from tqdm.auto import tqdm

from subfit.bypass import Bypass
from subfit.calibration import Calibration
from subfit.fit import fit_one_shot
from subfit.quality import Agreement
from subfit.sites import Site
from subfit.stream import ResidualStream


class Candidates:
    """A bypass for every site, fitted on the dense stream, which can be tried in any combination.

    A trial resumes from the stream that enters the candidate's layer: the layers before it are run once for all trials.

    Args:
        calibration: the model and its calibration tokens, all of which are fitted on.
        bypass: how every site is bypassed on trial.
        windows: number of calibration windows, evenly spaced, that the divergence is measured on.
        length: number of tokens of each, from its beginning: many short windows show more of the data than few long ones.
            The reference's logits are held for them, in the model's data type.
    """

    def __init__(self, calibration: Calibration, bypass: Bypass, windows: int, length: int):
        self.calibration = calibration
        self.replacements = {r.site: r for r in fit_one_shot(calibration, dict.fromkeys(calibration.sites, bypass))}
        spaced = torch.linspace(0, len(calibration.tokens) - 1, min(windows, len(calibration.tokens))).long()
        self.tokens = calibration.tokens[spaced, :length]
        stream = self._finish(self._start())
        with torch.no_grad():
            self._reference = [stream.logits(batch) for batch in stream.batches]

    @classmethod
    def of(cls, calibration: Calibration, bypass: Bypass, windows: int, length: int) -> "Candidates":
        """Returns these candidates, fitted on first use: a scorer and a selector that ask for the same share them."""
        key = (cls, type(bypass), tuple(vars(bypass).items()), windows, length)
        if key not in calibration.memory:
            calibration.memory[key] = cls(calibration, bypass, windows, length)
        return calibration.memory[key]

    @torch.no_grad()
    def divergences(self, chosen: Collection[Site], pool: Iterable[Site]) -> dict[Site, float]:
        """Returns the KL divergence with the `chosen` sites and one of the `pool` bypassed, in nats, for each of these."""
        trials = [self.replacements[site] for site in self.calibration.sites if site in set(pool)]
        for site in chosen:
            self.replacements[site].on()
        try:
            stream, found = self._start(), {}
            for trial in tqdm(trials, desc="try", unit="site"):
                while stream.position < trial.site.layer:
                    self._step(stream)
                trial.on()
                found[trial.site] = self._divergence(self._finish(stream.fork()))
                trial.off()
            return found
        finally:
            for replacement in self.replacements.values():
                replacement.off()

    def _start(self) -> ResidualStream:
        return ResidualStream(self.calibration.model, self.tokens, self.calibration.batch_size)

    def _finish(self, stream: ResidualStream) -> ResidualStream:
        while stream.position < len(stream.layers):
            self._step(stream)
        return stream

    def _step(self, stream: ResidualStream) -> None:
        for _ in stream.advance():
            pass

    def _divergence(self, stream: ResidualStream) -> float:
        metric = Agreement().to(self.calibration.device)
        for batch, reference in zip(stream.batches, self._reference, strict=True):
            metric.update(stream.logits(batch), stream.tokens[batch], reference)
        return float(metric.compute()["divergence"])
