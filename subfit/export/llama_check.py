"""Whether llama.cpp will hold a model once it is compressed, found before the work by a fit of one layer."""

from collections.abc import Mapping
from typing import Any

import torch

from subfit.bypass import Substitute
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.export.deci import unsupported
from subfit.export.deci_bypass import blocks_of
from subfit.export.gguf_tokenizer import vocabulary_of
from subfit.export.llama_family import check_family
from subfit.fitting.sequential import fit_sequential
from subfit.fitting.substitutes import plan_of
from subfit.model.replacing import Replacement, turn_off
from subfit.model.submodules import Kind
from subfit.progress import Stage

TOKENS = 16  # their number and values do not matter: of a bypass, its structure is looked at


def check_for_llama_cpp(model: Any, tokenizer: Any, substitutes: Mapping[Kind, Substitute]) -> None:
    """Raises SubFitError if llama.cpp cannot hold a dense model, its tokenizer, or what is to stand in it.

    Args:
        model: the dense model.
        tokenizer: its tokenizer.
        substitutes: what takes the places of its submodules.
    """
    check_family(model.config)
    embedding = model.get_input_embeddings().weight
    vocabulary_of(tokenizer, len(embedding), [])
    with Stage("checking what llama.cpp holds", line=False):
        tried = _tried(model, len(embedding), substitutes)
    for replacement in tried:
        placed = replacement.stand_in
        if placed is None:
            continue
        reads = placed.site.input_norm not in placed.skipped_norms
        try:
            blocks_of(placed.bypass, torch.ones(placed.site.width) if reads else None, placed.site.width)
        except SubFitError as error:
            raise unsupported(f"{placed.site.kind}: {error}") from error


def _tried(model: Any, rows: int, substitutes: Mapping[Kind, Substitute]) -> list[Replacement]:
    """What would stand in the places of the submodules of one layer, switched off."""
    tokens = torch.randint(rows, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(model, tokens, 1)
    layer = min(1, calibration.sites[-1].layer)  # not the first: some maps are folded into the layer before
    sites = [site for site in calibration.sites if site.layer == layer]
    found = fit_sequential(calibration, plan_of(sites, substitutes), "branch")
    turn_off(found)
    return [switch for switch in found if isinstance(switch, Replacement)]
