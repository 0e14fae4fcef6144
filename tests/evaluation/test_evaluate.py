from conftest import tiny_tokenizer

from subfit.calibration.data import describe_tokens, read_tokens
from subfit.calibration.settings import Data, EvaluationData
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
    calibration, _ = read_tokens(Data(**size), load(str(model_folder))[0], tiny_tokenizer(), seed=0)
    assert len({*seen, describe_tokens(calibration)["sha256"]}) == 4
