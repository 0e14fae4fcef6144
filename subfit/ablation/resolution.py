"""Whether the rows of an ablation differ by more than chance, by paired tests."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from subfit.ablation.figures import line_axis
from subfit.ablation.measures import Row, axis_label, varying
from subfit.evaluation.limits import FEWEST_ITEMS, FEWEST_SEEDS, FEWEST_WINDOWS
from subfit.evaluation.significance import adjusted, paired_accuracy_p_value, paired_p_value

SIGNIFICANCE = 0.05  # of all comparisons of a group together


def unresolved(rows: list[Row], axes: Sequence[str], text: str) -> list[Row]:
    """Returns the rows whose ratio on a text is higher than the lowest one by what may be chance.

    Each is compared with the lowest of the rows that have its value of the first numeric axis, such as one sparsity, where
    rows differ in others, too. Rows with several seeds are tested over the seeds that both have, others over the windows, if
    both were measured on the same. A row that cannot be tested is not returned.
    """
    return _unresolved(rows, axes, partial(_ratio, text), partial(p_value, text=text))


def unresolved_accuracies(rows: list[Row], axes: Sequence[str]) -> list[Row]:
    """Returns the rows that retain less accuracy than the best one by what may be chance; compared as by `unresolved`, over
    the items of the tasks, if they are the same."""
    return _unresolved(rows, axes, _lost, accuracy_p_value)


def _unresolved(
    rows: list[Row],
    axes: Sequence[str],
    value: Callable[[Row], float | None],
    test: Callable[[Row, Row], float | None],
) -> list[Row]:
    """The rows whose value, of which lower is better, is not told from the lowest one by a test."""
    found = []
    for group in _groups(rows, axes):
        values = [(number, row) for row in group if (number := value(row)) is not None and math.isfinite(number)]
        _, lowest = min(values, key=lambda pair: pair[0], default=(None, None))
        tested = [(row, test(lowest, row)) for _, row in values if lowest is not None and row is not lowest]
        known = [(row, p) for row, p in tested if p is not None]
        joint = adjusted([p for _, p in known])
        found += [row for (row, _), p in zip(known, joint, strict=True) if p >= SIGNIFICANCE]
    return found


def _ratio(text: str, row: Row) -> float | None:
    ratio: float | None = row["texts"].get(text, {}).get("perplexity_ratio")
    return ratio


def _lost(row: Row) -> float | None:
    """The share of the dense model's accuracy that is lost."""
    retained = row.get("tasks_mean", {}).get("retained")
    return None if retained is None else 1 - retained


def accuracy_p_value(one: Row, other: Row) -> float | None:
    """Returns the p-value of two rows' accuracies being equal; None where they cannot be paired. See `unresolved`."""
    answers = [{name: task.get("correct") for name, task in row.get("tasks", {}).items()} for row in (one, other)]
    same_files = one.get("depends_on", {}).get("data") == other.get("depends_on", {}).get("data")
    if not same_files or any(not task or len(task) < FEWEST_ITEMS for each in answers for task in each.values()):
        return None
    counts = [{name: len(task) for name, task in each.items()} for each in answers]
    if not counts[0] or counts[0] != counts[1]:
        return None
    return paired_accuracy_p_value([([*map(int, answers[0][name])], [*map(int, answers[1][name])]) for name in answers[0]])


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
