"""lm-evaluation-harness itself, on a task of its own kind whose data is a local file."""

import json
import sys

import pytest
import yaml
from conftest import tiny_model
from lm_eval.tasks import TaskManager
from words import rows, word_tokenizer

from subfit.errors import SubFitError
from subfit.evaluation import lm_eval_harness as harness
from subfit.evaluation.tasks import read_task
from subfit.evaluation.zero_shot import score_task

GREEDY = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": " {{choices[0]}}"}


def harness_task(tmp_path, name: str, **options) -> str:
    """Writes a task's data, and how the harness reads it."""
    data = tmp_path / f"{name}.jsonl"
    made = [row | {"query": row["query"].rstrip()} for row in rows(12)]
    data.write_text("\n".join(map(json.dumps, made)))
    kind = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    metrics = {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": str(data)}, "test_split": "train"}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"task": name, "doc_to_text": "{{query}}", **source, **kind, **metrics, **options}))
    return str(path)


def test_its_answers_are_ours(tmp_path):
    path = harness_task(tmp_path, "toy")
    tokenizer = word_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    (found,) = harness.score_names(model, tokenizer, [path], TaskManager(include_defaults=False), 9, 4)
    own = score_task(model, tokenizer, read_task(str(tmp_path / "toy.jsonl"), 9), 200)
    assert (found.name, found.correct, found.correct_norm) == ("toy", own.correct, own.correct_norm)
    assert found.chance == pytest.approx(own.chance)


def test_a_task_without_choices(tmp_path):
    path = harness_task(tmp_path, "toy", **GREEDY, metric_list=[{"metric": "acc"}])
    tokenizer = word_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    (found,) = harness.score_names(model, tokenizer, [path], TaskManager(include_defaults=False), None, 4)
    assert (len(found.correct), found.correct_norm, found.chance) == (12, None, 0)


def test_what_it_cannot_do_is_one_line(tmp_path, monkeypatch):
    tokenizer = word_tokenizer()
    model, manager = tiny_model(vocab_size=len(tokenizer)), TaskManager(include_defaults=False)
    away = harness_task(tmp_path, "away", dataset_path="nobody/nothing", dataset_kwargs={})
    with pytest.raises(SubFitError, match=r"^the harness cannot run .*away.yaml: \w+: .*nobody/nothing.*$"):
        harness.score_names(model, tokenizer, [away], manager, 2, 4)
    bits = harness_task(tmp_path, "bits", **GREEDY, metric_list=[{"metric": "perplexity"}])
    with pytest.raises(SubFitError, match="task bits measures perplexity; only tasks that measure acc"):
        harness.score_names(model, tokenizer, [bits], manager, 2, 4)
    monkeypatch.setattr("lm_eval.evaluator.TaskManager", lambda: manager)
    with pytest.raises(SubFitError, match="lm-evaluation-harness knows no task 'boolqq'"):
        harness.find_tasks(["boolqq"])
    assert harness.find_tasks([bits]) is manager
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(SubFitError, match=r"the task 'boolq' needs lm-evaluation-harness: pip install 'subfit\[eval\]'"):
        harness.find_tasks(["boolq"])
