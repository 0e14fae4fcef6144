"""How far the residual stream after a site is from a linear map of the one before it."""

from subfit.calibration.capture import Calibration
from subfit.calibration.moments import StreamingMoments
from subfit.fitting.regression import centre, check_ridge, ridged, whitener
from subfit.model.activations import Activations
from subfit.model.submodules import Site
from subfit.scorer import Scorer, Scores


class CanonicalCorrelation(Scorer):
    """NBL's bound on the error of linearising a site (arXiv 2505.21077).

        score = sum over i of  (1 - rho_i^2),  rho_i the canonical correlations of h and h + y

    It bounds from above the mean squared error of the best affine map from h to h + y, as a share of the variance of h + y.

    The ridge is that of a little noise on the stream which passes the site: added to the covariances of h, of h + y, and of
    the two. So a site that adds nothing scores 0. Four matrices (d, d) are held for each site of one layer at a time.

    Args:
        ridge: variance of that noise, relative to the mean variance of h.

    Raises:
        SubFitError: if `ridge` is negative.
    """

    def __init__(self, ridge: float = 1e-6) -> None:
        check_ridge(ridge)
        self.ridge = ridge

    def score(self, calibration: Calibration) -> Scores:
        moments: dict[Site, list[StreamingMoments]] = {}
        scores: Scores = {}

        def visit(site: Site, seen: Activations) -> None:
            before = seen.h.float()
            after = before + seen.added.float()
            if site not in moments:
                moments[site] = [StreamingMoments(site.width, site.width).to(calibration.device) for _ in range(2)]
            moments[site][0].update(before, after)
            moments[site][1].update(after, after)

        def done(site: Site) -> None:
            before, after = (centre(m.compute()) for m in moments.pop(site))
            noise = ridged(before.xx, self.ridge) - before.xx
            left, right = whitener(before.xx + noise), whitener(after.xx + noise)
            whitened = left.T @ (before.xy + noise) @ right  # its singular values are the canonical correlations
            scores[site] = max(0.0, min(whitened.shape) - float(whitened.square().sum()))

        calibration.watch_sites(calibration.sites, "scoring", visit, done)
        return scores
