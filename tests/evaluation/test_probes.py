"""Probes of what a model takes from its context: their items, and their losses against single forward passes."""

import json

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer

from subfit.cli.main import main
from subfit.evaluation.probes import DISTANCES, ITEMS, SEGMENT, measure_probes, probes


@pytest.fixture(scope="module")
def items():
    return probes(tiny_model(), tiny_tokenizer(), 0)


def test_copying_is_predicted_from_the_segment_before(items):
    assert len(items["copying"]) == ITEMS
    for context, wanted in items["copying"]:
        assert context[0] == 1 and len(context) == 2 + SEGMENT
        assert context[1 : 1 + SEGMENT] == [context[-1], *wanted]


@pytest.mark.parametrize("back", DISTANCES)
def test_recall_asks_for_the_value_of_a_key_that_is_so_many_pairs_back(items, back):
    for context, wanted in items[f"recall, {back} back"]:
        pairs = list(zip(context[1:-1:2], context[2:-1:2], strict=True))
        assert len(pairs) == SEGMENT // 2 and pairs[-back] == (context[-1], *wanted)


def test_a_story_tells_the_last_word_or_does_not(items):
    told, new = items["last word, mentioned"], items["last word, new"]
    decode = tiny_tokenizer().decode
    for (context, wanted), (other, same) in zip(told, new, strict=True):
        name = decode(wanted).replace(" ", "")
        assert wanted == same and name in decode(context).replace(" ", "") and name not in decode(other).replace(" ", "")


def test_losses_and_differences_are_those_of_forward_passes():
    model, dense, tokenizer = tiny_model(), tiny_model(initializer_range=0.1), tiny_tokenizer()
    found = measure_probes(model, tokenizer, 512, 0, dense)
    for name, made in probes(model, tokenizer, 0).items():
        sums = [0.0, 0.0]
        for context, wanted in made:
            tokens = torch.tensor([context + wanted])
            for index, each in enumerate((model, dense)):
                with torch.no_grad():
                    scores = each(tokens).logits[0, len(context) - 1 : -1].log_softmax(-1)
                sums[index] -= float(scores.gather(1, torch.tensor(wanted)[:, None]).sum())
        count = sum(len(wanted) for _, wanted in made)
        probe = found[name]
        assert probe["loss"] == pytest.approx(sums[0] / count, rel=1e-5)
        assert probe["reference_loss"] == pytest.approx(sums[1] / count, rel=1e-5)
        assert probe["difference"] == pytest.approx((sums[0] - sums[1]) / count, rel=1e-4, abs=1e-5)
        assert probe["difference_interval"][0] <= probe["difference"] <= probe["difference_interval"][1]


def test_from_the_command_line(model_folder, capsys):
    assert main(["evaluate", str(model_folder), "--probes", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["texts"] == {} and set(result["probes"]) == set(probes(tiny_model(), tiny_tokenizer(), 0))
    assert "difference" not in result["probes"]["copying"]
    assert main(["evaluate", str(model_folder), "--reference", str(model_folder), "--probes"]) == 0
    shown = capsys.readouterr().out
    assert "copying" in shown and "reference" in shown and "0.000 [0.000, 0.000]" in shown
