"""Scores that cells share: looked up in the calibration's cache, computed together in one pass."""

from collections.abc import Iterable

import torch

from subfit.ablation.dependencies import scores_name
from subfit.calibration.capture import Calibration
from subfit.scorer import Scorer, Scores, StreamScorer, score_sites, score_together


def cached_scores(calibration: Calibration, scorer: Scorer, others: Iterable[Scorer]) -> Scores:
    """Returns the scores of the sites, from the calibration's cache if they are there.

    Args:
        others: scorers that will be asked for; if this one needs a pass over the tokens, those that can look at the same
            pass do so, too.
    """
    cache, name = calibration.cache, scores_name(scorer)
    assert cache is not None
    found = cache.get(name)
    if found is None:
        wanted = {name: scorer}
        if isinstance(scorer, StreamScorer):
            wanted |= {scores_name(other): other for other in others if isinstance(other, StreamScorer)}
        for each, scores in _scores(calibration, scorer, wanted).items():
            cache.put(each, {"scores": torch.tensor([scores[site] for site in calibration.sites], dtype=torch.float64)})
        found = cache.load(name)
    return dict(zip(calibration.sites, found["scores"].tolist(), strict=True))


def _scores(calibration: Calibration, scorer: Scorer, wanted: dict[str, Scorer]) -> dict[str, Scores]:
    """The scores by all scorers that are wanted, or by the one that is asked for alone if that fails."""
    try:
        return dict(zip(wanted, score_together(calibration, list(wanted.values())), strict=True))
    except Exception:  # the fault may be another scorer's, which its own cells will show
        return {scores_name(scorer): score_sites(calibration, scorer)}
