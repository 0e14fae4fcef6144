"""Tasks of EleutherAI's lm-evaluation-harness, an optional package, run by itself on a model that is already loaded."""

from pathlib import Path
from typing import Any

from subfit.errors import SubFitError
from subfit.evaluation.accuracy import TaskScores


def find_tasks(names: list[str]) -> Any:
    """Returns the harness's index of tasks, which takes seconds to make.

    Args:
        names: names of tasks or groups, or `.yaml` files of tasks, as the harness takes them.

    Raises:
        SubFitError: if the harness is not installed, or does not know one of the names.
    """
    try:
        from lm_eval.evaluator import TaskManager
    except ImportError as error:
        needs = f"the task {names[0]!r} needs lm-evaluation-harness: pip install 'subfit[eval]' ({error})"
        raise SubFitError(f"{needs}; a local task file ends in .jsonl") from error
    manager = TaskManager()
    for name in names:
        if not manager.match_tasks([name]) and not Path(name).is_file():
            raise SubFitError(f"lm-evaluation-harness knows no task {name!r}; a local task file ends in .jsonl")
    return manager


def score_names(
    model: Any, tokenizer: Any, names: list[str], manager: Any, limit: int | None, batch_size: int
) -> list[TaskScores]:
    """Returns which items of the harness's tasks a model gets right; a group of tasks gives its tasks.

    Args:
        names, manager: as for `find_tasks`, and what it returned.
        limit: number of items of each task, the first ones; all if not given.
        batch_size: sequences run at once.

    Raises:
        SubFitError: if the harness cannot load a task's data, or does not measure its accuracy.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = simple_evaluate(wrapped, tasks=list(names), task_manager=manager, limit=limit, bootstrap_iters=0)
    except Exception as error:  # the harness and the data sets it loads raise errors of many libraries
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise SubFitError(f"the harness cannot run {', '.join(names)}: {type(error).__name__}: {reason}") from error
    return [_scores(name, samples) for name, samples in found["samples"].items()]


def _scores(name: str, samples: list[dict[str, Any]]) -> TaskScores:
    """The scores of one task from what the harness logged of each item; of several filters, the first."""
    items = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    if "acc" not in items[0]:
        known = ", ".join(items[0]["metrics"])
        raise SubFitError(f"task {name} measures {known}; only tasks that measure acc can be compared with chance")
    choices = [len(item["resps"]) for item in items]
    norm = [float(item["acc_norm"]) for item in items] if "acc_norm" in items[0] else None
    chance = sum(1 / n for n in choices if n > 1) / len(items)
    return TaskScores(name, [float(item["acc"]) for item in items], norm, chance)
