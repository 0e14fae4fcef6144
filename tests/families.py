"""What holds of a tiny model of one type of transformers, cell by cell; see `test_families.py`."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from architectures import tiny_config, tiny_model_of
from conftest import Given, recipe, tiny_tokenizer, tiny_tokens
from safetensors.torch import save_file

from subfit.errors import SubFitError
from subfit.model.checkpoint import save
from subfit.model.discovery import find_sites
from subfit.model.finalizing import check_replaceable
from subfit.model.loading import load
from subfit.model.modeling_subfit import Zero
from subfit.model.recording import probe_tokens
from subfit.model.replacing import BypassReplacement
from subfit.pipeline import compress_model

PASS = "pass"
AS_DENSE = "the dense model does not, either"
NEW = 8  # tokens to write after a prompt of 7: beyond the sliding windows of 8
CLOSE = 1e-3  # largest difference of logits, relative to their largest value


class Family:
    """The cells of one model type; each is a method that raises, or returns `PASS` or what is so instead.

    Args:
        name: the model type.
        folder: where its compressed models are saved, for the process that has no `subfit`.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.dense = _built(name, folder)
        check_replaceable(self.dense)
        self.sites = find_sites(self.dense)
        self.kinds = list(dict.fromkeys(site.kind for site in self.sites))
        self.of_dense = _generations(self.dense)

    def fit(self, names: list[str], dtype: torch.dtype = torch.float32, **given: Any) -> Any:
        """A compressed copy of the model, and the record."""
        made = recipe(selector=Given(names), attention_bypass="linear", ffn_bypass="linear", **given)
        return compress_model(copy.deepcopy(self.dense).to(dtype), tiny_tokens(6, 12), made, batch_size=4)

    def names(self, kind: str | None = None) -> list[str]:
        return [site.name for site in self.sites if kind in (None, site.kind)]

    @torch.no_grad()
    def nothing_is_zero(self) -> str:
        """Nothing in the place of the first and the last site is what zero in the place of its output is."""
        tokens = probe_tokens(self.dense, 6)
        for site in (self.sites[0], self.sites[-1]):
            handle = self.dense.get_submodule(site.output_norm or site.path).register_forward_hook(_zero)
            expected = self.dense(tokens, use_cache=False).logits
            handle.remove()
            replacement = BypassReplacement(self.dense, site, Zero(), "nothing")
            replacement.on()
            found = self.dense(tokens, use_cache=False).logits
            replacement.off()
            assert _close(found, expected), site.name
        return PASS

    def first_and_last_layer(self) -> str:
        """One-shot fit; decoding as for the dense model; saved and read."""
        ends = [site.name for site in self.sites if site.layer in (self.sites[0].layer, self.sites[-1].layer)]
        self.ends = self.fit(ends)
        return self._reload(self.ends, "ends")

    def cached_decoding(self) -> str:
        self.generations = _generations(self.ends.model)
        return self._as_without_cache("cached")

    def static_cache(self) -> str:
        return self._as_without_cache("static")

    def left_padding(self) -> str:
        return self._as_without_cache("padded")

    def _as_without_cache(self, way: str) -> str:
        for one, found in ((self.of_dense, AS_DENSE), (self.generations, "other tokens than without")):
            if isinstance(one[way], str) or not _close(one[way], one["uncached"]):
                return found
        return PASS

    def attention(self) -> str:
        return self._all_of("attention")

    def mixer(self) -> str:
        return self._all_of("mixer")

    def ffn(self) -> str:
        return self._all_of("ffn")

    def _all_of(self, kind: str) -> str:
        """Sequential fit of all sites of a kind; decoding with a cache; their slots are empty."""
        names = self.names(kind)
        result = self.fit(names, fitting="sequential")
        _check_cached(result.model, self.of_dense)
        size = result.record["size"]["after"]
        left = {"attention": "kv_bytes_per_token", "mixer": "state_bytes_per_sequence"}.get(kind)
        if left and size[left] and not self._others_hold(kind):
            return f"{size[left]} {left} left"
        return PASS

    def _others_hold(self, kind: str) -> bool:
        """Whether Attentions or mixers stay that are no sites, or hold what the other kind does."""
        slots = {site.slot for site in self.sites if site.kind == kind}
        return len(slots) < self.dense.config.get_text_config().num_hidden_layers

    def everything(self) -> str:
        """All sites; the cache is empty; decoding with a cache; saved and read."""
        result = self.fit(self.names())
        _check_cached(result.model, self.of_dense)
        return self._reload(result, "everything")

    def bfloat16(self) -> str:
        """The same sites are found, and a fit leaves a model that computes."""
        result = self.fit([self.sites[0].name, self.sites[-1].name], torch.bfloat16)
        assert list(result.record["scores"]) == self.names()
        return PASS

    def _reload(self, result: Any, name: str) -> str:
        folder = self.folder / f"{self.name}-{name}"
        save(result.model, tiny_tokenizer(), result.record, str(folder), lambda *_: None)  # and compares what it loads
        model, _ = load(str(folder))
        tokens = tiny_tokens(2, 9, seed=2)
        with torch.no_grad():
            logits = result.model(tokens, use_cache=False).logits
            assert _close(model(tokens, use_cache=False).logits, logits)
        torch.save({"tokens": tokens, "logits": logits}, folder / "expected.pt")
        return PASS


CELLS: dict[str, Callable[[Family], str]] = {
    "nothing in place is zero": Family.nothing_is_zero,
    "first and last layer, saved": Family.first_and_last_layer,
    "cached decoding": Family.cached_decoding,
    "static cache": Family.static_cache,
    "left padding": Family.left_padding,
    "all Attentions": Family.attention,
    "all mixers": Family.mixer,
    "all FeedForwards": Family.ffn,
    "everything, saved": Family.everything,
    "bfloat16": Family.bfloat16,
}


def outcome(name: str, folder: Path) -> dict[str, Any]:
    """Returns what holds of a model type: its `submodules` and its `cells`, or how it is `refused`."""
    try:
        family = Family(name, folder)
    except SubFitError as error:
        return {"refused": str(error).replace(f"{folder}/", "")}
    counted = Counter(site.kind for site in family.sites)
    cells = {}
    for cell, run in CELLS.items():
        if cell.startswith("all ") and run.__name__ not in family.kinds:
            continue
        try:
            cells[cell] = run(family)
        except SubFitError as error:
            cells[cell] = str(error)
            if cell == "first and last layer, saved" and "cannot be compressed" in str(error):
                return {"refused": str(error)}
    return {"submodules": dict(counted), "cells": {cell: found for cell, found in cells.items() if found != PASS}}


def _built(name: str, folder: Path) -> Any:
    """A tiny model of this type; of one that transformers does not build, what `load` says of its checkpoint."""
    try:
        return tiny_model_of(name)
    except Exception:
        checkpoint = folder / name
        tiny_config(name).save_pretrained(checkpoint)
        save_file({}, checkpoint / "model.safetensors", {"format": "pt"})
        return load(str(checkpoint))


def _zero(module: Any, args: Any, output: Any) -> Any:
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


def _check_cached(model: Any, dense: dict[str, Any]) -> None:
    """Raises unless a model decodes with a cache as without, where its dense model does."""
    if not isinstance(dense["cached"], str) and _close(dense["cached"], dense["uncached"]):
        ids = tiny_tokens(2, 7, seed=1)
        assert _close(_logits(model, ids), _logits(model, ids, use_cache=False)), "cached decoding differs"


def _generations(model: Any) -> dict[str, Any]:
    """The logits of the tokens that a model writes, in several ways that should not differ; or what it fails with."""
    ids = tiny_tokens(2, 7, seed=1)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[:, :2] = 0
    padded = torch.cat([torch.zeros_like(ids[:, :2]), ids], 1)
    found: dict[str, Any] = {"uncached": _logits(model, ids, use_cache=False)}
    for way, run in {
        "cached": lambda: _logits(model, ids),
        "static": lambda: _logits(model, ids, cache_implementation="static", disable_compile=True),
        "padded": lambda: _logits(model, padded, mask),
    }.items():
        try:
            found[way] = run()
        except Exception as error:  # of a model that transformers does not run this way
            found[way] = f"{type(error).__name__}: {error}"
    return found


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    settings |= {"output_logits": True, "return_dict_in_generate": True, **options}
    return torch.stack(model.generate(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **settings).logits)
