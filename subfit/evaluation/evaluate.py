"""Measures a model on texts, zero-shot tasks and prompts, alone or beside a reference."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from subfit.calibration.settings import Data, evaluation_seed
from subfit.errors import SubFitError
from subfit.evaluation import lm_eval_harness as harness
from subfit.evaluation.accuracy import TaskScores, average, describe_scores
from subfit.evaluation.divergence import logits_of
from subfit.evaluation.generation import compare_generations
from subfit.evaluation.perplexity import measure, read_windows
from subfit.evaluation.probes import measure_probes
from subfit.evaluation.tasks import Task, read_task
from subfit.evaluation.texts import calibration_of, domains, named_texts
from subfit.evaluation.zero_shot import score_task
from subfit.model.digests import recorded_digests
from subfit.model.dtypes import describe_dtypes
from subfit.model.loading import device_of, load_placed
from subfit.model.memory import DeviceMap
from subfit.model.offloading import Places
from subfit.model.sizes import cache_size
from subfit.options.checked import checked
from subfit.progress import Stage

SEQUENCE = 512  # tokens of a sequence by which the batch size of tasks is reckoned


@checked
def evaluate(
    model: str,
    *,
    reference: str | None = None,
    data: dict[str, Data] | Data | None = None,
    stride: int | None = None,
    in_domain: Sequence[str] | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    probes: bool = False,
    prompts: str | Sequence[str] = (),
    new_tokens: int = 40,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap = "device",
    max_memory: str | None = None,
    batch_size: int = 4,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Returns a model's perplexity on texts, accuracy on tasks, what it writes and more; beside those of a reference.

    Args:
        model, reference: names of models, as for `load`, with the same vocabulary. Quantised weights are de-quantised, see
            `model.quantised`.
        data: texts by name, or a single one; those of the source `self` are sampled from the reference, or else from the
            model itself. If not given, and no task, prompt or probe is either: one such sample.
        stride: tokens from window to window of the texts; see `evaluation.perplexity.read_windows`. Beside texts, sampled
            windows stay disjoint: each begins where its text begins.
        in_domain: names of the texts in the domain of the calibration; the others are outside of it. If not given, what
            `evaluation.texts.domains` knows.
        tasks: local `.jsonl` files (see `evaluation.tasks.read_task`), or names that lm-evaluation-harness knows.
        limit: number of items of each task, the first ones; all if not given.
        probes: whether to measure what the models take from their context, see `evaluation.probes`; needs no data.
        prompts: texts that the models continue, see `evaluation.generation.compare_generations`.
        new_tokens: tokens to write after a prompt, at most.
        seed: seed of sampling and of resampling.
        dtype, device, device_map, trust_remote_code: of both models, as for `load`.
        max_memory: of each of them, as for `load`.
        batch_size: windows, or sequences of 512 tokens, run at once.

    Returns:
        `model`, `reference`, `dtypes` (of the model's weights, and of its computations), `calibration` (the tokens that a
        compressed model was calibrated on, where its folder says so), `texts` (`perplexity.measure` and `in_domain` by
        name), `tasks` (`accuracy.describe_scores` by name), `tasks_mean` (`accuracy.average`), `probes` (see
        `probes.measure_probes`), `generations` (by prompt), `parameters`, `kv_bytes_per_token`, `state_bytes_per_sequence`,
        and `seconds` of each stage. What was measured on a single text is at the top, too.

    Raises:
        SubFitError: if an argument, the model or the data cannot be used; the message says why.
    """
    if batch_size < 1:
        raise SubFitError(f"batch_size is {batch_size}; it must be at least 1")
    texts = named_texts(data, in_domain, bool(tasks or prompts or probes))
    calibration = calibration_of(model)
    local, named = _tasks(tasks, limit)
    manager = harness.find_tasks(named) if named else None
    places = Places(device_of(device), device_map, max_memory, dequantised=True)
    seconds, start = dict[str, float](), time.perf_counter()

    def finish(stage: str) -> None:
        nonlocal start
        seconds[stage], start = round(time.perf_counter() - start, 3), time.perf_counter()

    subject, tokenizer = load_placed(model, dtype, places, trust_remote_code, recorded_digests(model) is not None)
    dense = None
    if reference is not None:
        dense, its_tokenizer = load_placed(
            reference, dtype, places, trust_remote_code, recorded_digests(reference) is not None
        )
        _check_vocabularies(subject, dense, tokenizer, its_tokenizer)
    finish("load")

    def perplexity(name: str, text: Data) -> dict[str, Any]:
        sampled_by = evaluation_seed(seed, name if isinstance(data, dict) else "")
        step = stride if name in strided else None
        compared = logits_of(dense) if dense is not None else None
        with Stage(f"evaluating on {name}"):
            tokens, first = read_windows(text, step, dense or subject, tokenizer, sampled_by)
            return measure(logits_of(subject), tokens, first, tokenizer, compared, batch_size=batch_size, seed=seed)

    def accuracies(scored: Any) -> list[TaskScores]:
        own = [score_task(scored, tokenizer, task, batch_size * SEQUENCE) for task in local]
        with Stage(f"answering {', '.join(named)}") if named else nullcontext():
            return own + (harness.score_names(scored, tokenizer, named, manager, limit, batch_size) if named else [])

    strided = {name for name, text in texts.items() if text.sources() != ["self"]} or set(texts)
    in_domains = domains(texts, in_domain, calibration)
    asked = [prompts] if isinstance(prompts, str) else prompts
    generations = compare_generations(subject, dense, tokenizer, asked, new_tokens)
    finish("prompts")
    measured = {name: {"in_domain": in_domains[name], **perplexity(name, text)} for name, text in texts.items()}
    finish("texts")
    probed = measure_probes(subject, tokenizer, batch_size * SEQUENCE, seed, dense) if probes else {}
    finish("probes")
    compared = _compared(accuracies(subject), accuracies(dense) if dense is not None else None)
    finish("tasks")
    only = next(iter(measured.values())) if len(measured) == 1 else {}
    return {
        "model": model,
        "reference": reference,
        "dtypes": describe_dtypes(subject),
        "calibration": calibration,
        "texts": measured,
        **{name: value for name, value in only.items() if name != "in_domain"},
        "tasks": compared,
        "tasks_mean": average(list(compared.values())) if compared else None,
        "probes": probed,
        "generations": generations,
        "parameters": sum(p.numel() for p in subject.parameters()),
        **cache_size(subject),
        "seconds": seconds,
    }


def _compared(own: list[TaskScores], dense: list[TaskScores] | None) -> dict[str, dict[str, Any]]:
    """The accuracies by task; with the reference's scores, what is retained of them."""
    pairs = zip(own, dense if dense is not None else [None] * len(own), strict=True)
    return {scores.name: describe_scores(scores, other) for scores, other in pairs}


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


def _check_vocabularies(subject: Any, dense: Any, tokenizer: Any, its_tokenizer: Any) -> None:
    """Raises SubFitError unless both models have the same tokens; either tokenizer may have names for more of them."""
    own, other = (m.config.get_text_config().vocab_size for m in (subject, dense))
    if own != other:
        raise SubFitError(f"the model has a vocabulary of {own} tokens, the reference of {other}; they cannot be compared")
    ids, others = tokenizer.get_vocab(), its_tokenizer.get_vocab()
    for token in sorted(ids.keys() & others.keys()):
        if ids[token] != others[token]:
            said = f"{token!r} is {ids[token]} in the model's tokenizer and {others[token]} in the reference's"
            raise SubFitError(f"the tokens are not the same, and cannot be compared: {said}")
