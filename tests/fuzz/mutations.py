"""Strategies of hypothesis that begin with valid input and change types, values, nesting, keys, text and bytes."""

import copy
import json
import struct
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy], Any]

WORDS = [
    *(
        "",
        " ",
        "0",
        "-1",
        "1e3",
        "nan",
        "null",
        "true",
        "~",
        "a.b",
        "../x",
        "/",
        "\x00",
        "é",
        "\ud7ff",
        "a" * 300,
        "[",
        "{x",
    ),
    *("self", "text", "self+self", "hub", "one_shot", "sequential", "kv_bytes", "cpu", "meta", "cuda:9", "float16", "csv"),
    *("low_rank", "linear", "kl", "subfit", "subfitt", "per_type", "attention_bypass", "torch.nn.Linear", "os.system"),
    *("ffn.0", "layer.9", "layer.-1", "ffn", "dense", "compressed", "text.txt", "runs", "best", "missing.yaml"),
]
NUMBERS = [0, 1, -1, 2, 3, 7, 40, 0.5, -0.5, 1.0, 1e-9, 1e300, float("nan"), float("inf"), -float("inf")]
LARGE = [2**31, 2**32, 2**63, -(2**63), 2**64, 10**30]
KEYS = ["class_path", "init_args", "config", "unrecorded", "path", "rank", "ridge", "windows", "seed", "a.b", "", "x"]
MARKS = [
    *("&a ", "*a", "!!set ", "!!binary ", "!!python/tuple ", "? ", "- ", ": ", "\t", "\x00", "\ufeff", "---\n", "<<: *a\n"),
    *("{", "}", "[", "]", "'", '"', "#", "|\n", "2026-11-24", "0x1F", "1_000", ".inf", "\r\n", "\u2028", "[" * 60, "\x85"),
]

leaves = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=6))
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=4,
)


def mutated(draw: Draw, base: Any, *, large: bool = False, most: int = 3) -> Any:
    """Returns plain data with one to `most` changes.

    Args:
        large: whether there may be numbers that are too large for anything, which only what does no work is given.
    """
    found = copy.deepcopy(base)
    odd = values | st.sampled_from(LARGE) if large else values
    for _ in range(draw(st.integers(1, most))):
        found = _changed(draw, found, odd)
    return found


def mutated_text(draw: Draw, text: str) -> bytes:
    """Returns a text with something inserted, repeated or taken out, at times as bytes that are not UTF-8."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 20)))
        inserted = draw(st.sampled_from(MARKS) | st.text(max_size=4) | st.just(text[start:end] * 2))
        text = text[:start] + inserted + text[draw(st.sampled_from([start, end])) :]
    content = text.encode("utf-8", "replace")
    return mutated_bytes(draw, content) if draw(st.integers(0, 9)) == 0 else content


def mutated_bytes(draw: Draw, content: bytes) -> bytes:
    """Returns bytes of which some are exchanged, or which end early."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        if found:
            found[draw(st.integers(0, len(found) - 1))] = draw(st.integers(0, 255))
    return bytes(found[: draw(st.integers(0, len(found)))]) if draw(st.booleans()) else bytes(found)


def written(draw: Draw, content: Any) -> tuple[str, bytes]:
    """Returns plain data as a file of JSON or YAML: its suffix, and its content, which is at times changed as text."""
    suffix = draw(st.sampled_from([".yaml", ".json"]))
    text = json.dumps(content) if suffix == ".json" else yaml.safe_dump(content, sort_keys=False)
    return suffix, mutated_text(draw, text) if draw(st.integers(0, 3)) == 0 else text.encode("utf-8", "replace")


def mutated_safetensors(draw: Draw, content: bytes) -> bytes:
    """Returns the content of a .safetensors file whose header, the length of the header or the data are changed."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + size], content[8 + size :]
    part = draw(st.sampled_from(["fields", "text", "length", "data", "all"]))
    if part == "fields":
        header = json.dumps(mutated(draw, json.loads(header), large=True)).encode("utf-8", "replace")
    elif part == "text":
        header = mutated_text(draw, header.decode())
    elif part == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, 2 * size))) + content[8:]
    elif part == "data":
        return content[: 8 + size] + mutated_bytes(draw, data)
    else:
        return mutated_bytes(draw, content)
    return struct.pack("<Q", len(header)) + header + data


def _changed(draw: Draw, tree: Any, odd: st.SearchStrategy) -> Any:
    """Plain data with one change at a place that is drawn."""
    holder = [tree]
    *before, key = (0, *draw(st.sampled_from(_places(tree))))
    parent = _at(holder, tuple(before))
    value = parent[key]
    change = draw(st.sampled_from(["value", "value", "value", "type", "nest", "remove", "rename", "copy", "swap"]))
    if change == "value":
        parent[key] = draw(odd)
    elif change == "type":
        parent[key] = _other_type(draw, value)
    elif change == "nest":
        nested = [[value], [[[value]]], {"x": value}, {"class_path": value}, {"init_args": value}]
        parent[key] = draw(st.sampled_from(nested))
    elif change == "remove" and parent is not holder:
        del parent[key]
    elif change in ("rename", "copy") and isinstance(parent, dict):
        kept = parent.pop(key) if change == "rename" else value
        parent[draw(st.sampled_from([*KEYS, f"{key}s", f"{key}.{key}", str(key).upper()]))] = kept
    elif change == "swap":
        parent[key] = copy.deepcopy(_at(tree, draw(st.sampled_from(_places(tree)))))
    return holder[0]


def _other_type(draw: Draw, value: Any) -> Any:
    """The same value as another type."""
    made = [str(value), [value], {str(value)[:20]: value}, bool(value), None]
    if isinstance(value, int | float) and abs(value) < 1e300:  # others, and NaN, are no number of another type
        made += [float(value), int(value), -value, value * 10**6]
    return draw(st.sampled_from(made))


def _at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _places(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in plain data, as tuples of keys."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [before, *(place for key, item in items for place in _places(item, (*before, key)))]
