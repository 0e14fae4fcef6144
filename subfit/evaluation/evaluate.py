"""Measures a model on texts and on zero-shot tasks, alone or beside a reference."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from subfit.calibration.settings import Data, EvaluationData, evaluation_seed
from subfit.errors import SubFitError
from subfit.evaluation import lm_eval_harness as harness
from subfit.evaluation.accuracy import TaskScores, average, describe_scores
from subfit.evaluation.divergence import logits_of
from subfit.evaluation.perplexity import measure, read_windows
from subfit.evaluation.tasks import Task, read_task
from subfit.evaluation.zero_shot import score_task
from subfit.model.dtypes import describe_dtypes
from subfit.model.loading import load
from subfit.model.sizes import kv_bytes_per_token
from subfit.progress import Stage
from subfit.tracking.records import check_format

SEQUENCE = 512  # tokens of a sequence by which the batch size of tasks is reckoned


def evaluate(
    model: str,
    *,
    reference: str | None = None,
    data: Data | dict[str, Data] | None = None,
    stride: int | None = None,
    in_domain: Sequence[str] | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 4,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Returns a model's perplexity on texts, accuracy on tasks, and size; with a reference, what is retained of its quality.

    Args:
        model, reference: names of models, as for `load`. They must have the same vocabulary.
        data: texts by name, or a single one. If not given, and no task is either: sampled from the reference, or else from
            the model itself.
        stride: tokens from window to window; see `evaluation.perplexity.read_windows`.
        in_domain: names of the texts in the domain of the calibration; the others are outside of it. Not known if not given.
        tasks: local `.jsonl` files (see `evaluation.tasks.read_task`), or names that lm-evaluation-harness knows.
        limit: number of items of each task, the first ones; all if not given.
        seed: seed of sampling and of resampling.
        dtype, device, trust_remote_code: of both models, as for `load`.
        batch_size: windows, or sequences of 512 tokens, run at once.

    Returns:
        `model`, `reference`, `dtypes` (of the model's weights, and of its computations), `calibration` (the tokens that a
        compressed model was calibrated on, where its folder says so), `texts` (`perplexity.measure` and `in_domain` by
        name), `tasks` (`accuracy.describe_scores` by name), `tasks_mean` (`accuracy.average`), `parameters` and
        `kv_bytes_per_token`. What was measured on a single text is at the top, too.

    Raises:
        SubFitError: if an argument, the model or the data cannot be used; the message says why.
    """
    if batch_size < 1:
        raise SubFitError(f"batch_size is {batch_size}; it must be at least 1")
    texts = _texts(data, in_domain, bool(tasks))
    local, named = _tasks(tasks, limit)
    manager = harness.find_tasks(named) if named else None
    options: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    subject, tokenizer = load(model, **options)
    dense = load(reference, **options)[0] if reference is not None else None
    if dense is not None:
        _check_vocabularies(subject, dense)

    def perplexity(name: str, text: Data) -> dict[str, Any]:
        sampled_by = evaluation_seed(seed, name if isinstance(data, dict) else "")
        compared = logits_of(dense) if dense is not None else None
        with Stage(f"evaluating on {name}"):
            tokens, first = read_windows(text, stride, dense or subject, tokenizer, sampled_by)
            return measure(logits_of(subject), tokens, first, tokenizer, compared, batch_size=batch_size, seed=seed)

    def accuracies(scored: Any) -> list[TaskScores]:
        own = [score_task(scored, tokenizer, task, batch_size * SEQUENCE) for task in local]
        with Stage(f"answering {', '.join(named)}") if named else nullcontext():
            return own + (harness.score_names(scored, tokenizer, named, manager, limit, batch_size) if named else [])

    measured = {name: perplexity(name, text) for name, text in texts.items()}
    compared = _compared(accuracies(subject), accuracies(dense) if dense is not None else None)
    return {
        "model": model,
        "reference": reference,
        "dtypes": describe_dtypes(subject),
        "calibration": _calibration(model),
        "texts": {
            name: {"in_domain": None if in_domain is None else name in in_domain, **found}
            for name, found in measured.items()
        },
        **(next(iter(measured.values())) if len(measured) == 1 else {}),
        "tasks": compared,
        "tasks_mean": average(list(compared.values())) if compared else None,
        "parameters": sum(p.numel() for p in subject.parameters()),
        "kv_bytes_per_token": sum(kv_bytes_per_token(subject)),
    }


def _compared(own: list[TaskScores], dense: list[TaskScores] | None) -> dict[str, dict[str, Any]]:
    """The accuracies by task; with the reference's scores, what is retained of them."""
    pairs = zip(own, dense if dense is not None else [None] * len(own), strict=True)
    return {scores.name: describe_scores(scores, other) for scores, other in pairs}


def _texts(data: Data | dict[str, Data] | None, in_domain: Sequence[str] | None, only_tasks: bool) -> dict[str, Data]:
    """The texts by name."""
    if data is None:
        data = {} if only_tasks else EvaluationData()
    texts = data if isinstance(data, dict) else {"+".join(data.sources()): data}
    for name, text in texts.items():
        if text.windows < 1:
            raise SubFitError(f"text {name}: it has {text.windows} windows; at least 1 window is needed")
        text.check_files()
    unknown = [name for name in in_domain or () if name not in texts]
    if unknown:
        raise SubFitError(f"in_domain: there is no text {unknown[0]!r}; the texts are {', '.join(texts) or 'none'}")
    return texts


def _tasks(tasks: Sequence[str], limit: int | None) -> tuple[list[Task], list[str]]:
    """The tasks in local files, and the names of the others."""
    if limit is not None and limit < 1:
        raise SubFitError(f"limit is {limit}; it must be at least 1")
    local = [read_task(name, limit) for name in tasks if name.endswith(".jsonl")]
    named = [name for name in tasks if not name.endswith(".jsonl")]
    names = [task.name for task in local] + named
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SubFitError(f"two tasks are called {twice[0]!r}")
    return local, named


def _check_vocabularies(subject: Any, dense: Any) -> None:
    own, other = (m.config.get_text_config().vocab_size for m in (subject, dense))
    if own != other:
        raise SubFitError(f"the model has a vocabulary of {own} tokens, the reference of {other}; they cannot be compared")


def _calibration(model: str) -> dict[str, Any] | None:
    """What the folder of a compressed model says of its calibration tokens."""
    path = Path(model) / "compression.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    check_format(record, str(path))
    return record.get("configuration", {}).get("calibration")
