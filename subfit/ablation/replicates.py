"""Seeds as replicates: rows that differ in their seed alone are one row, whose intervals are over the seeds."""

import json
import math
from collections.abc import Callable
from typing import Any

from subfit.ablation.measures import Row
from subfit.evaluation.divergence import exp
from subfit.evaluation.intervals import mean, mean_interval

SEED = "seed"  # the axis


def merge_seeds(rows: list[Row]) -> list[Row]:
    """Returns finished rows with those merged that have the same values on all axes but the seed.

    A merged row has `seeds`; on each text the geometric mean of the ratios, and `log_ratios` by seed; and means of what else
    was measured. Intervals are Student's over the seeds, None for too few. Scores, selection and configuration are those
    of the first seed. If no two rows differ in their seed alone, all stay as they are.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        others = {axis: value for axis, value in row["values"].items() if axis != SEED}
        groups.setdefault(json.dumps(others, sort_keys=True), []).append(row)
    return rows if len(groups) == len(rows) else [_merged(group) for group in groups.values()]


def _merged(rows: list[Row]) -> Row:
    first = rows[0]
    seeds = [str(row["values"].get(SEED)) for row in rows]
    found = {**first, "values": {axis: value for axis, value in first["values"].items() if axis != SEED}, "seeds": seeds}
    names = [name for name in first["texts"] if all(name in row["texts"] for row in rows)]
    found["texts"] = {name: _text([row["texts"][name] for row in rows], seeds) for name in names}
    found["size"] = {
        **first["size"],
        "after": _means([row["size"]["after"] for row in rows], round),
        "added_parameters": round(mean([row["size"]["added_parameters"] for row in rows])),
    }
    found["seconds"] = _means([row["seconds"] for row in rows])
    if all("tasks_mean" in row for row in rows):
        found["tasks_mean"] = _tasks([row["tasks_mean"] for row in rows])
    found.pop("tasks", None)  # the answers of the first seed alone
    return found


def _text(texts: list[dict[str, Any]], seeds: list[str]) -> dict[str, Any]:
    logs = [math.log(text["perplexity_ratio"]) for text in texts]
    interval = mean_interval(logs)
    return {
        "perplexity_ratio": exp(mean(logs)),
        "perplexity_ratio_interval": [exp(end) for end in interval] if interval else None,
        "log_ratios": dict(zip(seeds, logs, strict=True)),
        **{name: mean([text[name] for text in texts]) for name in ("agreement", "kl")},
    }


def _tasks(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    found = dict[str, Any]()
    for name in ("retained", "retained_above_chance"):
        values = [one[name] for one in tasks if one[name] is not None]
        found[name] = mean(values) if len(values) == len(tasks) else None
        found[f"{name}_interval"] = mean_interval(values) if len(values) == len(tasks) else None
    return found


def _means(mappings: list[dict[str, Any]], shown: Callable[[float], float] = float) -> dict[str, float]:
    """The means of what all mappings have."""
    shared = [name for name in mappings[0] if all(name in one for one in mappings)]
    return {name: shown(mean([one[name] for one in mappings])) for name in shared}
