import copy

import pytest
import torch
from conftest import FAMILIES, Given, recipe, tiny_model, tiny_tokens

from subfit.errors import SubFitError
from subfit.fitting.costs import count_flops
from subfit.pipeline import compress_model
from subfit.scorer import StreamScorer

BYPASSES = ["identity", "linear", "low_rank", "shared_low_rank"]


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["one_shot", "branch", "dense", "corrected"])
def test_every_way_of_fitting_on_every_family(family, target):
    model = tiny_model(family)
    given = {"fitting": "one_shot"} if target == "one_shot" else {"fitting": "sequential", "target": target}
    dense = parameters(model)
    result = compress_model(model, tiny_tokens(), recipe(sparsity=0.5, **given), evaluation=tiny_tokens(4, seed=1))
    record = result.record
    assert sorted(name.split(".")[0] for name in record["selected"]) == ["attention"] * 2 + ["ffn"] * 2
    size = record["size"]
    assert size["before"]["parameters"] == dense and size["after"]["parameters"] == parameters(result.model)
    assert size["after"]["parameters"] == dense - size["removed_parameters"] + size["added_parameters"]
    assert 0 < size["added_parameters"] <= 0.1 * size["removed_parameters"]
    assert size["after"]["kv_bytes_per_token"] == size["before"]["kv_bytes_per_token"] / 2
    flops = count_flops(lambda: result.model(tiny_tokens(1), use_cache=False))["Global"]
    assert size["after"]["flops_per_token"] == flops / tiny_tokens().shape[1] < size["before"]["flops_per_token"]
    assert record["evaluation"]["perplexity"] > 0
    with torch.no_grad():
        assert result.model(tiny_tokens(2)).logits.isfinite().all()


@pytest.mark.parametrize("bypass", BYPASSES)
def test_exact_number_of_added_parameters(bypass):
    rank, d = 3, 32
    options = {"init_args": {"rank": rank}} if "rank" in bypass else {}
    made = recipe(sparsity=0.5, ffn_bypass={"class_path": bypass, **options}, attention_bypass="identity")
    size = compress_model(tiny_model(), tiny_tokens(), made).record["size"]
    expected = {
        "identity": 0,
        "linear": 2 * (d * d + d),
        "low_rank": 2 * (2 * d * rank + d),
        "shared_low_rank": d * rank + 2 * (d * rank + d),  # the basis is counted once
    }
    assert size["added_parameters"] == expected[bypass]


def test_a_linear_branch_is_replaced_exactly():
    """A feed-forward that is linear already is reproduced by a linear bypass, one-shot and sequential alike."""
    model = tiny_model("gpt2", activation_function="linear")
    names = ["ffn.0", "ffn.2", "ffn.3"]
    with torch.no_grad():
        expected = model(tiny_tokens(3, seed=5)).logits
    for fitting in ("one_shot", "sequential"):
        bypass = {"class_path": "linear", "init_args": {"ridge": 0.0}}
        made = recipe(selector=Given(names), ffn_bypass=bypass, fitting=fitting)
        result = compress_model(copy.deepcopy(model), tiny_tokens(40), made)
        assert all(value > 0.999999 for value in result.record["explained_variance"].values())
        with torch.no_grad():
            torch.testing.assert_close(result.model(tiny_tokens(3, seed=5)).logits, expected, rtol=1e-3, atol=1e-3)


def test_nothing_to_replace_leaves_the_model_as_it_was():
    model = tiny_model()
    with torch.no_grad():
        expected = model(tiny_tokens(2)).logits
        result = compress_model(model, tiny_tokens(), recipe(sparsity=0.0))
        assert result.record["selected"] == []
        assert torch.equal(result.model(tiny_tokens(2)).logits, expected)


def test_fewer_tokens_than_dimensions_and_repeated_tokens():
    for tokens in (tiny_tokens(1, 6), torch.full((4, 8), 7)):
        result = compress_model(tiny_model(), tokens, recipe(sparsity=0.5))
        with torch.no_grad():
            assert result.model(tiny_tokens(2)).logits.isfinite().all()


def test_a_nan_in_the_model_is_one_clear_error():
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(SubFitError, match="NaN"):
        compress_model(model, tiny_tokens(), recipe())


def test_a_compressed_model_is_not_compressed_again():
    result = compress_model(tiny_model(), tiny_tokens(), recipe())
    with pytest.raises(SubFitError, match="compressed already"):
        compress_model(result.model, tiny_tokens(), recipe())


class Broken(StreamScorer):
    def update(self, h, x, y):
        pass

    def compute(self):
        return torch.tensor(float("nan"))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(SubFitError, match="gives nan for attention.0"):
        compress_model(tiny_model(), tiny_tokens(), recipe(scorer=Broken()))


@pytest.mark.parametrize("rank", [0, 33])
def test_a_rank_outside_the_dimension_is_refused(rank):
    bypass = {"class_path": "low_rank", "init_args": {"rank": rank}}
    with pytest.raises(SubFitError, match=f"rank is {rank}; it must be from 1 to 32"):
        compress_model(tiny_model(), tiny_tokens(), recipe(attention_bypass=bypass))


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(SubFitError, match="sparsity is .*(at least 0 and less than 1|must be a number)"):
        recipe(sparsity=sparsity)
