"""What each site costs: parameters, cache, arithmetic, time."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from subfit.bypass import Substitute
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting.substitutes import groups_of
from subfit.model.modeling_subfit import KeptGroups, token_map
from subfit.model.sizes import kv_bytes_per_token
from subfit.model.submodules import Kind, Site

Unit = Literal["submodules", "parameters", "kv_bytes", "flops", "latency"]
UNITS: tuple[Unit, ...] = get_args(Unit)
REPEATS = 5  # forward passes that a latency is the median of

Costs = dict[Site, float]


def site_costs(calibration: Calibration, unit: Unit) -> Costs:
    """Returns what each site costs in the dense model.

    Args:
        unit: `submodules`, one each; `parameters`; `kv_bytes` per token; `flops` per token, and `latency`, seconds of its
            forward pass over one batch, both measured on windows of the calibration's length.
    """
    key = ("site_costs", unit)
    if key not in calibration.memory:
        calibration.memory[key] = _MEASURES[unit](calibration)
    return calibration.memory[key]


def flops_per_token(calibration: Calibration, replaced: Mapping[Site, nn.Module]) -> tuple[float, float]:
    """Returns the FLOPs per token of a forward pass over one calibration window, head included: dense, and compressed.

    Args:
        calibration: of the model, in which nothing is replaced now.
        replaced: what stands in the places of which sites in the compressed model.
    """
    dense = site_costs(calibration, "flops")
    whole = compressed = _forward_flops(calibration)["Global"]
    for site, bypass in replaced.items():
        token = torch.zeros(1, site.width, device=calibration.device, dtype=calibration.dtype)
        kept = bypass.kept / bypass.groups if isinstance(bypass, KeptGroups) else 0.0
        compressed += count_flops(partial(token_map(bypass), token))["Global"] - (1 - kept) * dense[site]
    return whole, compressed


def bypass_costs(calibration: Calibration, substitutes: Mapping[Kind, Substitute], unit: Unit) -> Costs:
    """Returns what the substitute of each site that has one would cost, the mean over the sites that share it.

    A bypass counts no submodule; each of its parameters is multiplied and added once for a token. Where it keeps a share of
    the cache, it does that share of the site's arithmetic on keys and values. Its seconds are estimated at the rate at which
    its site does its arithmetic.
    """
    sites = [site for site in calibration.sites if site.kind in substitutes]
    if unit == "submodules":
        return dict.fromkeys(sites, 0.0)
    costs: Costs = {}
    for substitute, group in groups_of({site: substitutes[site.kind] for site in sites}).items():
        costs |= _costs_of_one(calibration, substitute, group, unit)
    if unit == "latency":
        seconds, flops = site_costs(calibration, "latency"), site_costs(calibration, "flops")
        costs = {site: cost * seconds[site] / flops[site] for site, cost in costs.items()}
    return costs


def _costs_of_one(calibration: Calibration, substitute: Substitute, sites: list[Site], unit: Unit) -> Costs:
    """What a substitute costs at each of its sites, in bytes of the cache, parameters or FLOPs."""
    shares = substitute.cache_shares(sites)
    if unit == "kv_bytes":
        cached = site_costs(calibration, unit)
        return {site: shares[site] * cached[site] for site in sites}
    added = substitute.parameters(sites) / len(sites)
    if unit == "parameters":
        return dict.fromkeys(sites, added)
    dense = site_costs(calibration, "flops")
    on_cache = {site: max(dense[site] - 2 * site.parameters, 0.0) for site in sites}  # what no parameter has a part in
    return {site: 2 * added + shares[site] * on_cache[site] for site in sites}


def _submodules(calibration: Calibration) -> Costs:
    return dict.fromkeys(calibration.sites, 1.0)


def _parameters(calibration: Calibration) -> Costs:
    return {site: float(site.parameters) for site in calibration.sites}


def _kv_bytes(calibration: Calibration) -> Costs:
    slots = kv_bytes_per_token(calibration.model)
    return {
        site: float(slots[site.slot]) if site.kind == "attention" and site.slot < len(slots) else 0.0
        for site in calibration.sites
    }


def _flops(calibration: Calibration) -> Costs:
    counts, prefix = _forward_flops(calibration), type(calibration.model).__name__
    return {site: counts[f"{prefix}.{site.path}"] for site in calibration.sites}


def _forward_flops(calibration: Calibration) -> Mapping[str, float]:
    """The FLOPs per token of a forward pass over one window, as `count_flops` returns them."""
    key = "forward_flops"
    if key not in calibration.memory:
        window = calibration.tokens[:1].to(calibration.device)
        counts = count_flops(lambda: calibration.model(window, use_cache=False))
        calibration.memory[key] = defaultdict(float, {path: n / window.shape[1] for path, n in counts.items()})
    return calibration.memory[key]


@torch.no_grad()
def count_flops(run: Callable[[], Any]) -> dict[str, int]:
    """Returns the multiplications and additions of what `run` calls, by module path, and in all as `Global`.

    Matrix products are counted, nothing else. As is usual, attention counts every query with every key, whatever a causal
    mask leaves of it.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return defaultdict(int, {path: sum(counts.values()) for path, counts in counter.get_flop_counts().items()})


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Q K^T and its product with V; shapes (batch, heads, tokens, width)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}  # torch counts CUDA's alone


@torch.no_grad()
def _latency(calibration: Calibration) -> Costs:
    """Sites of one kind and size have one latency, the median over all of them and several passes."""
    batch = calibration.tokens[: calibration.batch_size].to(calibration.device)
    began: dict[Site, float] = {}
    took: dict[tuple[Kind, int], list[float]] = defaultdict(list)

    def now() -> float:
        if calibration.device.type == "cuda":
            torch.cuda.synchronize(calibration.device)
        return time.perf_counter()

    with ExitStack() as stack:
        for site in calibration.sites:
            core = calibration.model.get_submodule(site.path)
            before = core.register_forward_pre_hook(lambda *_, site=site: began.update({site: now()}))
            after = core.register_forward_hook(
                lambda *_, site=site: took[site.kind, site.parameters].append(now() - began[site])
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        for _ in range(REPEATS):
            calibration.model(batch, use_cache=False)
    return {site: median(took[site.kind, site.parameters]) for site in calibration.sites}


_MEASURES: dict[str, Callable[[Calibration], Costs]] = {
    "submodules": _submodules,
    "parameters": _parameters,
    "kv_bytes": _kv_bytes,
    "flops": _flops,
    "latency": _latency,
}


def check_unit(unit: str) -> None:
    """Raises SubFitError if there is no such unit."""
    if unit not in UNITS:
        raise SubFitError(f"unknown unit {unit!r} of a budget; use {', '.join(UNITS)}")
