"""The examples in the documentation of the interfaces are run as they stand."""

import json
import re

import pytest

from subfit import bypass, scorer, selector
from subfit.cli.main import main

SMALL = ["--calibration.windows", "4", "--calibration.length", "32", "--evaluation.windows", "1", "--sparsity", "0.5"]
EXAMPLES = {
    "a mean over tokens": ("scorer", scorer.__doc__),
    "a scorer": ("scorer", scorer.Scorer.__doc__),
    "a scorer that sees the stream": ("scorer", scorer.StreamScorer.__doc__),
    "a selector": ("selector", selector.__doc__),
    "a bypass": ("ffn_bypass", bypass.__doc__),
}


def code_of(text: str) -> str:
    """The example in a docstring, without its indentation."""
    ((indent, code),) = re.findall(r"^( *)```python\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


@pytest.mark.parametrize("case", EXAMPLES)
def test_an_example_runs_as_it_stands(case, tmp_path, model_folder, text_file, capsys):
    option, text = EXAMPLES[case]
    (tmp_path / "example.py").write_text(code_of(text))
    given = ["--model", str(model_folder), "--calibration.path", str(text_file), *SMALL]
    assert main(["compress", *given, f"--{option}", str(tmp_path / "example.py"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["selected"]) == 4 and record["evaluation"]["perplexity"] > 0
    if case == "a selector":
        assert set(record["selected"]) == {"attention.2", "ffn.2", "attention.3", "ffn.3"}


def test_a_scorer_is_told_its_site_and_module_before_it_sees_data():
    from conftest import tiny_model, tiny_tokens

    from subfit.calibration.capture import Calibration

    class Told(scorer.TokenMean):
        def each(self, h, y):
            assert self.branch.core is self.branch.model.get_submodule(self.branch.site.path)
            return y.norm(dim=-1) * 0 + self.branch.site.layer + (self.branch.site.kind == "ffn") / 2

    scores = Told().score(Calibration(tiny_model(), tiny_tokens(3)))
    assert list(scores.values()) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
