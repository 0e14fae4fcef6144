"""Models with random weights of any configuration, to time a shape without its checkpoint."""

import copy
import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from subfit import registry
from subfit.bypass import Substitute
from subfit.config import Recipe
from subfit.errors import SubFitError, summary
from subfit.fitting.budget import check_sparsity
from subfit.model.discovery import find_sites
from subfit.model.dtypes import compute_dtype, dtype_of
from subfit.model.hub_access import check_reachable
from subfit.model.loading import device_of
from subfit.model.submodules import KINDS
from subfit.model.threads import limit_threads
from subfit.pipeline import compress_model

TOKENS = 16  # what the bypasses are fitted on: their values do not matter, only their shapes


def random_models(
    name: str,
    sparsity: float,
    attention_bypass: Substitute,
    ffn_bypass: Substitute,
    *,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Returns a dense model of random weights, and a compressed one, in which the sites to replace lie evenly in depth.

    The compressed one is made as any other is, except that its bypasses are fitted to a few random tokens. The weights that
    it keeps are those of the dense one: together they take the memory of one.

    Args:
        name: a configuration: a `config.json`, the folder of a model, or its hub name.
        sparsity: share of the Attentions, and of the FeedForwards, to replace.
        attention_bypass, ffn_bypass: what takes their places.
        dtype, device, trust_remote_code: see `model.loading.load`; `auto` is the configuration's own dtype, or float32
            where the device would emulate that.

    Raises:
        SubFitError: if there is no such configuration, or the model is not supported.
    """
    check_sparsity(sparsity)
    target, wanted = device_of(device), dtype_of(dtype)
    limit_threads()
    torch.manual_seed(seed)
    try:
        check_reachable(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        wanted = compute_dtype(config.dtype or torch.float32, target) if wanted == "auto" else wanted
        with target:
            dense = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=trust_remote_code).eval()
    except Exception as error:  # whatever a configuration makes of transformers
        raise SubFitError(f"cannot build a model of the configuration {name!r}: {summary(error)}") from error
    tensors = [*dense.parameters(), *dense.buffers()]
    compressed = copy.deepcopy(dense, {id(tensor): tensor for tensor in tensors})
    recipe = Recipe(
        scorer=registry.make("scorers", "random"),
        selector=registry.make("selectors", {"class_path": "given", "init_args": {"sites": _even(dense, sparsity)}}),
        attention_bypass=attention_bypass,
        ffn_bypass=ffn_bypass,
        sparsity=sparsity,
    )
    tokens = torch.randint(len(dense.get_input_embeddings().weight), (1, TOKENS))
    return dense, compress_model(compressed, tokens, recipe).model


def _even(model: Any, sparsity: float) -> list[str]:
    """The names of a share of a model's Attentions and FeedForwards, evenly spaced in depth."""
    names = []
    for kind in KINDS:
        sites = [site.name for site in find_sites(model) if site.kind == kind]
        count = math.floor(sparsity * len(sites) + 0.5)
        names += [sites[(2 * i + 1) * len(sites) // (2 * count)] for i in range(count)]
    return names
