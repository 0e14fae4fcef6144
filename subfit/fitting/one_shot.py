"""Fits the bypasses of the selected sites from the dense stream, all at once."""

from collections.abc import Callable
from typing import Any

from torch import nn

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.replacements import fit_bypass
from subfit.fitting.statistics import StatisticsFiles, gather, statistics_files
from subfit.fitting.substitutes import Plan, groups_of
from subfit.model.replacing import BypassReplacement
from subfit.model.submodules import Site


def fit_one_shot(calibration: Calibration, plan: Plan) -> list[BypassReplacement]:
    """Fits every bypass to what its branch adds in the dense model, in one pass; returns them switched off."""
    fitted: dict[Site, BypassReplacement] = {}
    fit_each(calibration, plan, lambda replacement: fitted.update({replacement.site: replacement}))
    return [fitted[site] for site in plan]


def fit_each(calibration: Calibration, plan: Plan, done: Callable[[BypassReplacement], None]) -> None:
    """Fits as `fit_one_shot`, and gives each bypass to `done` as soon as it is fitted; none is kept.

    Raises:
        SubFitError: if there is another substitute than a bypass in the plan.
    """
    bypasses = {site: substitute for site, substitute in plan.items() if isinstance(substitute, Bypass)}
    if len(bypasses) < len(plan):
        raise SubFitError("a map that is folded into another site, or a layer that is retrained, needs fitting: sequential")

    def fit(site: Site, statistics: Any, shared: Any = None) -> None:
        done(fit_bypass(calibration.branch(site), bypasses[site], statistics, shared))

    groups = _groups_to_share(bypasses)
    grouped = {site for sites in groups.values() for site in sites}
    with statistics_files(calibration) as files:
        gather(calibration, bypasses, lambda site, found: files.put(site, found) if site in grouped else fit(site, found))
        for bypass, sites in groups.items():
            shared = _shared_part(calibration, bypass, sites, files)
            for site in sites:
                fit(site, files.load(site), shared)


def shared_parts(calibration: Calibration, plan: Plan) -> dict[Bypass, Any]:
    """Returns what the sites of each bypass have in common, learned on the dense stream; see `Bypass.fit_shared`."""
    groups = _groups_to_share({site: its for site, its in plan.items() if isinstance(its, Bypass)})
    if not groups:
        return {}
    with statistics_files(calibration) as files:
        gather(calibration, {site: bypass for bypass, sites in groups.items() for site in sites}, files.put)
        return {bypass: _shared_part(calibration, bypass, sites, files) for bypass, sites in groups.items()}


def _groups_to_share(bypasses: dict[Site, Bypass]) -> dict[Bypass, list[Site]]:
    """The sites of each bypass that has something to learn from all of them."""
    return groups_of({s: b for s, b in bypasses.items() if type(b).fit_shared is not Bypass.fit_shared})


def _shared_part(calibration: Calibration, bypass: Bypass, sites: list[Site], files: StatisticsFiles) -> Any:
    """What a group of sites has in common; its modules are rounded to the model's data type before anything is fitted."""
    shared = bypass.fit_shared(sites, (files.load(site) for site in sites))
    for part in (shared, *getattr(shared, "__dict__", {}).values()):
        if isinstance(part, nn.Module):
            part.to(calibration.dtype)
    return shared
