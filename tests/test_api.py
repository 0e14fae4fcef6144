import pytest
import torch
from conftest import tiny_tokens

import subfit


def test_compress_load_and_evaluate(model_folder, text_file, tmp_path):
    result = subfit.compress(
        model=str(model_folder),
        sparsity=0.5,
        ffn_bypass={"class_path": "low_rank", "init_args": {"rank": 4}},
        calibration={"path": str(text_file), "windows": 6, "length": 32},
        evaluation={"windows": 2, "length": 32},
        output=str(tmp_path / "out"),
    )
    model, tokenizer = subfit.load(str(tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(model(tiny_tokens(2)).logits, result.model(tiny_tokens(2)).logits)
    assert tokenizer("a")["input_ids"] == result.tokenizer("a")["input_ids"]
    assert result.record["configuration"]["ffn_bypass"]["init_args"]["rank"] == 4
    assert set(subfit.list_strategies("bypasses")) == {"bypasses"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": {"sparsty": 0.5}}, "unknown option 'sparsty'; did you mean 'sparsity'\\? options are scorer, selector"),
        (
            {"calibration": {"widows": 3}},
            "calibration: unknown option 'widows'; did you mean 'windows'\\? options are source",
        ),
        ({"scorer": "subfitt"}, "unknown scorer 'subfitt'; did you mean 'subfit'"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
    ],
)
def test_bad_options_are_one_clear_error(given, message):
    with pytest.raises(subfit.SubFitError, match=message):
        subfit.compress(**given)
