"""The method, as it reads in the paper: score, select, fit, replace; and, if asked for, fine-tune."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subfit.bypass import Bypass
from subfit.calibration.capture import Calibration
from subfit.calibration.checks import warn
from subfit.calibration.data import RunTokens
from subfit.config import Recipe
from subfit.errors import SubFitError, attribute_errors_to, missing, where
from subfit.evaluation.comparison import Comparison
from subfit.finetuning.closed_form import UNFINISHED, closed_form, identity_of_options
from subfit.fitting.budget import Budget
from subfit.fitting.costs import flops_per_token
from subfit.fitting.one_shot import fit_one_shot
from subfit.fitting.sequential import fit_sequential
from subfit.fitting.substitutes import Plan, plan_of
from subfit.model.decoder_check import check_decoder
from subfit.model.finalizing import check_replaceable, finalize, finalized
from subfit.model.offloading import check_resident
from subfit.model.portable_code import portable_source
from subfit.model.processes import broadcast, init_process_group
from subfit.model.replacing import Replacement, Switch, switched_off
from subfit.model.sizes import cache_size
from subfit.model.submodules import Site
from subfit.progress import Stage
from subfit.scorer import Scorer, Scores, score_sites
from subfit.selector import Selector
from subfit.strategy import with_seed
from subfit.tracking.loggers import Log
from subfit.tracking.provenance import differing, processor


@dataclass
class Compression:
    """A compressed model and the record of its compression.

    Attributes:
        model: the model with its bypasses in place.
        record: scores, selection, fit quality, sizes before and after, evaluation and timings, as plain data.
        tokenizer: the model's tokenizer, if it is known.
    """

    model: Any
    record: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None


def compress_model(
    model: Any,
    tokens: Tensor,
    recipe: Recipe,
    *,
    evaluation: Tensor | None = None,
    training: Tensor | None = None,
    batch_size: int = 8,
    seed: int = 0,
    log: Log | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> Compression:
    """Replaces the least needed sites of a dense model by fitted bypasses, in place.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokens: (windows, length), calibration tokens, packed without padding.
        recipe: how to score, select, fit and fine-tune.
        evaluation: (windows, length), held-out tokens on which the compressed model is compared with the dense one.
        training: (windows, length), tokens to fine-tune on; those of the calibration, if not given.
        batch_size: windows run at once.
        seed: of every strategy that draws at random and has no seed of its own.
        log: where a fine-tuning is logged.
        keep: called before a fine-tuning, with the record of the closed-form result; the model can be saved then.

    Raises:
        SubFitError: if the model is not supported, or gives NaN, or the recipe does not fit it.
    """
    if recipe.training_windows and training is None:
        raise SubFitError(f"finetune.windows is {recipe.training_windows}; give these tokens, too: training=...")
    check_replaceable(model)
    calibration = Calibration(model, tokens, batch_size)
    check_decoder(model, calibration.sites)
    init_process_group(calibration.device)
    switches, record = fit_recipe(calibration, recipe, seed)
    portable_source([switch.stand_in.bypass for switch in switches if switch.stand_in])  # fails before the work that follows
    if keep is not None and recipe.finetune is not None:
        record["size"] = compression_sizes(calibration, switches)
        with finalized(model, switches):
            keep({**record, "seconds": dict(record["seconds"]), "finetune": closed_form(UNFINISHED)})
    tune(calibration, switches, recipe, record, log or Log(), training)
    if evaluation is not None and len(evaluation):
        with timed(record["seconds"], "evaluate"), Stage("evaluating"):
            with switched_off(switches):
                comparison = Comparison(model, evaluation)
            record["evaluation"] = comparison.measure(switches)
    record["size"] = compression_sizes(calibration, switches)
    finalize(model, switches)
    return Compression(model, record)


def fit_recipe(
    calibration: Calibration, recipe: Recipe, seed: int = 0, score: Callable[[Calibration, Scorer], Scores] | None = None
) -> tuple[list[Switch], dict[str, Any]]:
    """Scores, selects and fits as a recipe says.

    Args:
        seed: of every strategy that draws at random and has no seed of its own.
        score: used instead of `score_sites` to get the scores, such as a function that caches them.

    Returns:
        The replacements, switched on, and the record of scores, selection, fit and seconds as plain data.
    """
    check_finetuning(recipe, calibration.device, calibration.model)
    seconds: dict[str, float] = {}
    substitutes = recipe.substitutes
    scorer, selector, substitutes = with_seed((recipe.scorer, recipe.selector, substitutes), seed)
    eligible = _eligible(calibration.sites, recipe.protect)
    with timed(seconds, "score"), Stage(f"scoring {len(calibration.sites)} submodules"):
        scores = (score or score_sites)(calibration, scorer)
    with timed(seconds, "select"), Stage("selecting"), attribute_errors_to(selector):
        budget = Budget(calibration, substitutes, recipe.sparsity, recipe.budget)
        selected = selector.select({site: scores[site] for site in eligible}, budget, calibration)
        selected = broadcast(_check_selection(selected, eligible, selector))
    with timed(seconds, "fit"), Stage(f"fitting {len(selected)} bypasses"):
        switches = list(_fit(calibration, plan_of(selected, substitutes), recipe))
    for switch in switches:
        switch.on()
    return switches, {
        "scores": {site.name: score for site, score in scores.items()},
        "selected": [site.name for site in selected],
        "explained_variance": {its.site.name: its.explained for its in switches if isinstance(its, Replacement)},
        "seconds": seconds,
    }


def _fit(calibration: Calibration, plan: Plan, recipe: Recipe) -> Sequence[Switch]:
    if recipe.fitting == "one_shot":
        return fit_one_shot(calibration, plan)
    return fit_sequential(calibration, plan, recipe.target, recipe.correction, recipe.refit_kept)


def check_finetuning(recipe: Recipe, device: torch.device, model: nn.Module | None = None) -> None:
    """Checks the settings of a fine-tuning, if the recipe has one; see `check_settings`."""
    if recipe.finetune is not None:
        with warnings.catch_warnings():  # to which Lightning adds, when it is imported
            from subfit.finetuning.trainer import check_settings  # and Lightning, which takes seconds

        check_settings(recipe.finetune, device, model)
        if model is not None:
            check_resident(model, "a fine-tuning")


def check_resume(resume: str | None, recipe: Recipe, configuration: Mapping[str, Any]) -> None:
    """Checks that a run can go on from the state of an interrupted one, before any work.

    Args:
        resume: the file of the state; None if there is none.
        recipe, configuration: what this run does, and all its options as plain data.

    Raises:
        SubFitError: if it is no such state, or that of a run with other options, or this run has no fine-tuning.
    """
    if resume is None:
        return
    if not Path(resume).is_file():
        raise SubFitError(f"resume: the checkpoint {missing(resume)}")
    if recipe.finetune is None:
        raise SubFitError("resume: this run has no fine-tuning that could go on; give the options of the interrupted run")
    from subfit.finetuning.resuming import check_state  # and Lightning, which takes seconds

    saved_on = check_state(resume, identity_of_options(configuration))
    if said := differing([saved_on, processor()]):
        warn(f"resume: {said}")


def check_resumed_tokens(resume: str | None, tokens: RunTokens) -> None:
    """Raises SubFitError if a run that goes on from the state of an interrupted one is fitted or trained on other tokens."""
    if resume is not None:
        from subfit.finetuning.resuming import check_state, identity_of_tokens  # and Lightning, which takes seconds

        training = tokens.calibration if tokens.training is None else tokens.training
        check_state(resume, identity_of_tokens(tokens.calibration, training))


def tune(
    calibration: Calibration,
    switches: list[Switch],
    recipe: Recipe,
    record: dict[str, Any],
    log: Log,
    training: Tensor | None = None,
) -> None:
    """Fine-tunes what was fitted, if the recipe says so, and adds to the record; see `fine_tune`."""
    if recipe.finetune is not None:
        from subfit.finetuning.fine_tune import fine_tune  # and Lightning, which takes seconds

        with timed(record["seconds"], "finetune"), Stage("fine-tuning"):
            record["finetune"] = fine_tune(calibration, switches, recipe.finetune, log, training)


def compression_sizes(calibration: Calibration, switches: list[Switch]) -> dict[str, Any]:
    """Returns parameters, and bytes of the cache and FLOPs per token, without and with the switches, which are on."""
    model = calibration.model
    with switched_off(switches):
        before = _size(model)
        placed = [switch.stand_in for switch in switches if switch.stand_in is not None]
        dense, compressed = flops_per_token(calibration, {its.site: its.bypass for its in placed})
    after = _size(model)
    removed = sum(switch.removed_parameters() for switch in switches)
    return {
        "before": before | {"flops_per_token": dense},
        "after": after | {"flops_per_token": compressed},
        "removed_parameters": removed,
        "added_parameters": after["parameters"] - before["parameters"] + removed,
    }


def _size(model: nn.Module) -> dict[str, int]:
    return {"parameters": sum(p.numel() for p in model.parameters()), **cache_size(model)}


def _eligible(sites: list[Site], protect: list[str]) -> list[Site]:
    """The sites that are not protected.

    Raises:
        SubFitError: if a name fits no site.
    """
    layers = sites[-1].layer + 1
    protected = set[Site]()
    for name in protect:
        named = [s for s in sites if name in (s.name, s.kind, f"layer.{s.layer}", f"layer.{s.layer - layers}")]
        if not named:
            raise SubFitError(f"protect: no site is called {name!r}; use attention.0 to ffn.{layers - 1}, or layer.N")
        protected.update(named)
    return [site for site in sites if site not in protected]


def _check_selection(selected: Any, eligible: list[Site], selector: Selector) -> list[Site] | dict[Site, Bypass]:
    """Returns the selection in the order of the stream, each site once, known and not protected."""
    returned: list[Any] = list(selected) if isinstance(selected, list | tuple | set | dict) else [selected]
    wrong = [item for item in returned if item not in eligible or returned.count(item) > 1]
    if wrong:
        name = wrong[0].name if isinstance(wrong[0], Site) else repr(wrong[0])
        rule = "it must choose among the sites that it is given, each once"
        raise SubFitError(f"the selector returns {name}; {rule} ({where(selector, 'select')})")
    chosen = [site for site in eligible if site in returned]
    return {site: selected[site] for site in chosen} if isinstance(selected, dict) else chosen


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Within the context, takes the time of a stage, in seconds."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)
