import json
import shutil

import pytest
from conftest import tiny_tokenizer

from subfit.calibration.data import describe_tokens, read_tokens
from subfit.calibration.settings import Data, EvaluationData
from subfit.errors import SubFitError
from subfit.evaluation import evaluate as evaluation
from subfit.model.loading import load


def test_sampled_texts_are_neither_each_others_nor_the_calibrations(model_folder, monkeypatch):
    seen = []
    read = evaluation.read_windows

    def recorded(*given):
        tokens, first = read(*given)
        seen.append(describe_tokens(tokens)["sha256"])
        return tokens, first

    monkeypatch.setattr(evaluation, "read_windows", recorded)
    size = {"windows": 2, "length": 16}
    evaluation.evaluate(str(model_folder), data={"one": EvaluationData(**size), "two": EvaluationData(**size)})
    evaluation.evaluate(str(model_folder), data=EvaluationData(**size))
    calibration, *_ = read_tokens(Data(**size), load(str(model_folder))[0], tiny_tokenizer(), seed=0)
    assert len({*seen, describe_tokens(calibration)["sha256"]}) == 4


def test_a_reference_with_other_tokens_is_refused(model_folder, tmp_path):
    """It has as many, so that nothing else would tell."""
    shutil.copytree(model_folder, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    ids = content["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(SubFitError, match=f"'a' is {ids['b']} in the model's tokenizer and {ids['a']} in the reference's"):
        evaluation.evaluate(str(model_folder), reference=str(tmp_path / "other"), data=EvaluationData(windows=1, length=8))
    ids["a"], ids["b"], ids["more"] = ids["b"], ids["a"], len(ids)  # a name that only one of them has is no difference
    path.write_text(json.dumps(content))
    evaluation.evaluate(str(model_folder), reference=str(tmp_path / "other"), data=EvaluationData(windows=1, length=8))
