"""Whether the rows of an ablation differ by more than chance, by paired tests."""

import math
from collections.abc import Sequence

from subfit.ablation.figures import line_axis
from subfit.ablation.measures import Row, axis_label, varying
from subfit.evaluation.limits import FEWEST_SEEDS, FEWEST_WINDOWS
from subfit.evaluation.significance import adjusted, paired_p_value

SIGNIFICANCE = 0.05  # of all comparisons of a group together


def unresolved(rows: list[Row], axes: Sequence[str], text: str) -> list[Row]:
    """Returns the rows whose ratio on a text is higher than the lowest one by what may be chance.

    Each is compared with the lowest of the rows that have its value of the first numeric axis, such as one sparsity, where
    rows differ in others, too. Rows with several seeds are tested over the seeds that both have, others over the windows, if
    both were measured on the same. A row that cannot be tested is not returned.
    """
    found = []
    for group in _groups(rows, axes):
        finite = [row for row in group if text in row["texts"] and math.isfinite(row["texts"][text]["perplexity_ratio"])]
        lowest = min(finite, key=lambda row: row["texts"][text]["perplexity_ratio"], default=None)
        tested = [(row, p_value(lowest, row, text)) for row in finite if lowest is not None and row is not lowest]
        known = [(row, p) for row, p in tested if p is not None]
        joint = adjusted([p for _, p in known])
        found += [row for (row, _), p in zip(known, joint, strict=True) if p >= SIGNIFICANCE]
    return found


def p_value(one: Row, other: Row, text: str) -> float | None:
    """Returns the p-value of two rows' ratios on a text being equal; None where they cannot be paired. See `unresolved`."""
    a, b = one["texts"][text], other["texts"][text]
    if "log_ratios" in a and "log_ratios" in b:
        both = [seed for seed in a["log_ratios"] if seed in b["log_ratios"]]
        pairs = [(a["log_ratios"][seed], b["log_ratios"][seed]) for seed in both]
        fewest = FEWEST_SEEDS
    else:
        same = _tokens(one, text) is not None and _tokens(one, text) == _tokens(other, text)
        pairs = list(zip(a.get("window_losses", []), b.get("window_losses", []), strict=False)) if same else []
        fewest = FEWEST_WINDOWS
    if len(pairs) < fewest or not all(math.isfinite(value) for pair in pairs for value in pair):
        return None
    return paired_p_value(*zip(*pairs, strict=True))


def _tokens(row: Row, text: str) -> str | None:
    """The SHA-256 of the tokens of a text."""
    described = {"evaluation": row.get("evaluation_tokens"), **row.get("text_tokens", {})}.get(text) or {}
    found: str | None = described.get("sha256")
    return found


def _groups(rows: list[Row], axes: Sequence[str]) -> list[list[Row]]:
    """The rows that are compared with each other."""
    numeric = line_axis(rows, axes)
    if numeric is None or varying(rows, axes) == [numeric]:
        return [rows]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(axis_label(row, numeric), []).append(row)
    return list(groups.values())
