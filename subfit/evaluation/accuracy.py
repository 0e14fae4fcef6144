"""Accuracies on tasks, and what a model retains of its reference's."""

from dataclasses import dataclass
from typing import Any

from subfit.evaluation.intervals import mean, ratio_interval, standard_error


@dataclass(frozen=True)
class TaskScores:
    """What a model gets right of a task.

    Attributes:
        name: the task's.
        correct: 1 or 0 for each item.
        correct_norm: the same with log-likelihoods normalised by length; None where there is nothing to choose from.
        chance: accuracy of guessing.
        log_likelihoods: of each item's right continuation, in nats; None if not known.
    """

    name: str
    correct: list[float]
    correct_norm: list[float] | None
    chance: float
    log_likelihoods: list[float] | None = None

    def main(self) -> list[float]:
        """What counts for comparisons and means: length-normalised where there are choices."""
        return self.correct if self.correct_norm is None else self.correct_norm


def describe_scores(scores: TaskScores, dense: TaskScores | None = None) -> dict[str, Any]:
    """Returns the accuracies of a model on a task, their standard errors and, with a reference, what is retained.

    Errors and intervals are None where there are too few items; see `evaluation.intervals`.

    Args:
        dense: the reference's scores on the same items.

    Returns:
        `items`, `chance`, `metric` (`acc_norm`, or `acc` where there are no choices), `acc` and `acc_norm` with
        `..._error`, `correct`, a digit for each item, 1 where the metric's answer is right, by which two models are
        compared on the same items, and `log_likelihood`, the mean of the right continuations'. With a reference,
        `reference_acc` and `reference_acc_norm`, and of the metric `reference_error`, `difference` (with the paired error),
        `retained` and `retained_above_chance`, both with a 95 % `..._interval` that allows for the errors of both models.
    """
    result: dict[str, Any] = {
        "items": len(scores.correct),
        "chance": scores.chance,
        "metric": "acc" if scores.correct_norm is None else "acc_norm",
        "acc": mean(scores.correct),
        "acc_error": standard_error(scores.correct),
    }
    if scores.correct_norm is not None:
        result |= {"acc_norm": mean(scores.correct_norm), "acc_norm_error": standard_error(scores.correct_norm)}
    result["correct"] = "".join(str(int(right)) for right in scores.main())
    if scores.log_likelihoods is not None:
        result["log_likelihood"] = mean(scores.log_likelihoods)
    if dense is None:
        return result
    result["reference_acc"] = mean(dense.correct)
    if dense.correct_norm is not None:
        result["reference_acc_norm"] = mean(dense.correct_norm)
    differences = [own - other for own, other in zip(scores.main(), dense.main(), strict=True)]
    result |= {"difference": mean(differences), "difference_error": standard_error(differences)}
    result["reference_error"] = standard_error(dense.main())
    errors = standard_error(scores.main()), result["reference_error"], result["difference_error"]
    return result | _retained(mean(scores.main()), mean(dense.main()), scores.chance, errors)


def average(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the mean over tasks, each with the same weight, of what `describe_scores` says of each task's metric.

    Returns:
        `tasks`, `chance`, `accuracy` and, with a reference, `reference_accuracy`, `difference`, `retained` and
        `retained_above_chance`, the ratios of the means, with their intervals. Errors are those of a mean of independent
        tasks.
    """
    own = [task[task["metric"]] for task in tasks]
    result: dict[str, Any] = {"tasks": len(tasks), "chance": mean([task["chance"] for task in tasks]), "accuracy": mean(own)}
    result["accuracy_error"] = _error_of_mean([task[f"{task['metric']}_error"] for task in tasks])
    if "difference" not in tasks[0]:
        return result
    result["reference_accuracy"] = mean([task[f"reference_{task['metric']}"] for task in tasks])
    result["difference"] = mean([task["difference"] for task in tasks])
    result["difference_error"] = _error_of_mean([task["difference_error"] for task in tasks])
    result["reference_error"] = _error_of_mean([task["reference_error"] for task in tasks])
    errors = result["accuracy_error"], result["reference_error"], result["difference_error"]
    return result | _retained(result["accuracy"], result["reference_accuracy"], result["chance"], errors)


def _retained(accuracy: float, dense: float, chance: float, errors: tuple[float | None, ...]) -> dict[str, Any]:
    """The share of the reference's accuracy, plain and above chance; None where the reference has nothing to retain.

    Args:
        errors: of the accuracy, of the reference's, and of their difference, from which their covariance follows.
    """
    found: dict[str, Any] = {}
    for name, least in (("retained", 0.0), ("retained_above_chance", chance)):
        kept, whole = accuracy - least, dense - least
        found |= {name: kept / whole if whole > 0 else None, f"{name}_interval": None}
        known = [error for error in errors if error is not None]
        if whole > 0 and len(known) == len(errors):
            own, other, paired = known
            covariance = (own**2 + other**2 - paired**2) / 2
            found[f"{name}_interval"] = ratio_interval(kept, whole, own, other, covariance)
    return found


def _error_of_mean(errors: list[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return sum(error**2 for error in known) ** 0.5 / len(known) if len(known) == len(errors) else None
