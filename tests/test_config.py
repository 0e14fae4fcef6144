"""One configuration, however it is given: what is said where, in which order, and what is written down of it."""

import inspect
import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from subfit import registry
from subfit.calibration.settings import Data
from subfit.cli.main import main
from subfit.config import OPTIONS, configuration, resolve
from subfit.errors import SubFitError
from subfit.options.sources import Text, presets
from subfit.strategies.bypasses.linear import Linear
from subfit.strategies.bypasses.low_rank import LowRank
from subfit.strategies.bypasses.shared_low_rank import SharedLowRank
from subfit.strategies.scorers.subfit import SubFit

PLUGIN = """
from __future__ import annotations

from typing import TYPE_CHECKING

from subfit.scorer import Scorer
from subfit.selector import Selector

if TYPE_CHECKING:
    from subfit.bypass import Bypass


class Many(Scorer):
    def __init__(self, parts: list[Scorer], trial: Bypass | None = None, table: dict[str, Bypass] | None = None):
        self.parts, self.trial, self.table = parts, trial, table

    def score(self, calibration):
        return {}


class Chosen(Selector):
    def __init__(self, way: Bypass | Scorer, names: list[str] | None = None, weights: tuple[float, ...] = (1.0,)):
        self.way, self.names, self.weights = way, names, weights

    def select(self, scores, budget, calibration):
        return []
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "many.py"
    path.write_text(PLUGIN)
    return path


def arguments(strategy):
    return type(strategy).__name__, strategy.arguments()


@pytest.mark.parametrize("dotted", ["ffn_bypass.init_args.ridge", "ffn_bypass.ridge"])
def test_a_name_and_its_arguments_in_one_source_are_one_strategy_in_any_order(dotted, tmp_path):
    for name in ("ffn_bypass", "ffn_bypass.class_path"):
        both = {name: "linear", dotted: 0.5}
        for given in (both, dict(reversed(both.items()))):
            (tmp_path / "given.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
            (tmp_path / "given.json").write_text(json.dumps(given))
            for source in (given, tmp_path / "given.yaml", str(tmp_path / "given.json")):
                assert arguments(resolve(source).recipe.ffn_bypass) == arguments(Linear(ridge=0.5))


def test_arguments_go_to_the_strategy_of_an_earlier_source_and_a_name_begins_anew():
    first = {"ffn_bypass": {"class_path": "low_rank", "init_args": {"rank": 3, "ridge": 0.5}}}
    assert resolve(first, {"ffn_bypass.ridge": 0.25}).recipe.ffn_bypass.arguments() == {
        "rank": 3,
        "share": 0.1,
        "ridge": 0.25,
        "reads": "input",
        "prior": "zero",
    }
    assert resolve(first, {"ffn_bypass": {"init_args": {"ridge": 0.25}}}).recipe.ffn_bypass.rank == 3
    assert resolve(first, {"ffn_bypass": {"ridge": 0.25}}).recipe.ffn_bypass.rank == 3
    assert arguments(resolve(first, {"ffn_bypass": "linear"}).recipe.ffn_bypass) == arguments(Linear())
    assert resolve(first, {"ffn_bypass": "low_rank"}).recipe.ffn_bypass.arguments()["rank"] == "auto"
    assert resolve({"ffn_bypass": LowRank(rank=3)}, {"ffn_bypass.ridge": 0.25}).recipe.ffn_bypass.arguments()["rank"] == 3
    assert resolve({"attention_bypass.ridge": 0.25}).recipe.attention_bypass.ridge == 0.25  # of the default


def test_later_sources_win_and_mappings_are_merged():
    found = resolve("best", {"calibration": {"windows": 4}}, {"calibration": {"length": 32}, "sparsity": 0.5})
    assert (found.calibration.windows, found.calibration.length, found.recipe.sparsity) == (4, 32, 0.5)
    assert found.recipe.fitting == "sequential"
    found = resolve({"calibration": Data(windows=4)}, {"calibration.length": 32})
    assert found.calibration == Data(windows=4, length=32)
    assert resolve({"finetune.batch_size": 2}, {"finetune": None}).recipe.finetune is None


def test_strategies_in_strategies_are_made_by_type_under_any_name(plugin):
    inner = {"class_path": "linear", "init_args": {"ridge": 0.5}}
    parts = ["rotation", {"class_path": "subfit", "init_args": {"quantile": 0.5}}, SubFit(0.75)]
    table = {"ffn.*": inner, "0-1": "identity", "b": LowRank(2)}
    many = {"class_path": f"{plugin}:Many", "init_args": {"parts": parts, "trial": inner, "table": table}}
    chosen = {"class_path": f"{plugin}:Chosen", "init_args": {"way": "kl", "weights": [1, 2]}}
    recipe = resolve({"scorer": many, "selector": chosen}).recipe
    assert [type(part).__name__ for part in recipe.scorer.parts] == ["Rotation", "SubFit", "SubFit"]
    assert recipe.scorer.parts[1].quantile == 0.5 and recipe.scorer.parts[2] is parts[2]
    assert recipe.scorer.trial.ridge == 0.5 and recipe.scorer.table["b"] is table["b"]
    assert [type(value).__name__ for value in recipe.scorer.table.values()] == ["Linear", "Identity", "LowRank"]
    assert type(recipe.selector.way).__name__ == "KL" and recipe.selector.weights == (1.0, 2.0)
    written = configuration(resolve({"scorer": many, "selector": chosen}))
    assert json.loads(json.dumps(written)) == written == configuration(resolve(written))
    assert written["scorer"]["init_args"]["parts"][2] == {"class_path": "subfit", "init_args": {"quantile": 0.75}}
    assert resolve(written, {"scorer.trial.ridge": 0.25}).recipe.scorer.trial.ridge == 0.25


def test_a_nested_strategy_of_the_wrong_kind_says_where(plugin):
    for wrong, message in (
        (LowRank(), r"scorer.parts\[0\] is a LowRank; it must be a Scorer"),
        ("linaer", r"scorer.parts\[0\]: unknown scorer 'linaer'"),
        (3, r"scorer.parts\[0\] is 3; it must be a Scorer: an object, a name, or a mapping"),
        (
            {"class_path": "subfit", "init_args": {"quantle": 1}},
            r"scorer.parts\[0\] subfit: unknown option 'quantle'; did you",
        ),
    ):
        with pytest.raises(SubFitError, match=message):
            resolve({"scorer": {"class_path": f"{plugin}:Many", "init_args": {"parts": [wrong]}}})
    with pytest.raises(SubFitError, match="scorer .*Many: parts is missing; it must be a list"):
        resolve({"scorer": f"{plugin}:Many"})


def test_one_object_for_both_types_is_one_group_and_names_are_two(tmp_path):
    one = SharedLowRank(ridge=0.5)
    found = resolve({"attention_bypass": one, "ffn_bypass": one})
    assert found.recipe.attention_bypass is one is found.recipe.ffn_bypass
    written = configuration(found)
    assert written["ffn_bypass"] == "attention_bypass"
    again = resolve(json.loads(json.dumps(written))).recipe
    assert again.attention_bypass is again.ffn_bypass and again.ffn_bypass.ridge == 0.5
    both = {"attention_bypass": "shared_low_rank", "ffn_bypass": "shared_low_rank"}
    (tmp_path / "alias.yaml").write_text("attention_bypass: &a {class_path: shared_low_rank}\nffn_bypass: *a\n")
    for source in (both, tmp_path / "alias.yaml"):
        recipe = resolve(source).recipe
        assert recipe.attention_bypass is not recipe.ffn_bypass
        assert configuration(resolve(source))["ffn_bypass"]["class_path"] == "shared_low_rank"


@pytest.mark.parametrize("name", presets())
def test_what_is_written_of_a_preset_is_the_preset(name):
    written = configuration(resolve(name))
    assert list(written) == list(OPTIONS)
    read = yaml.safe_load(yaml.safe_dump(written))
    assert read == written == configuration(resolve(read))


def test_a_configuration_is_a_presets_name_a_file_or_the_record_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = configuration(resolve("best", {"sparsity": 0.375}))
    (tmp_path / "compression.json").write_text(json.dumps({"configuration": written, "selected": []}))
    assert configuration(resolve("compression.json")) == written
    (tmp_path / "best").mkdir()  # a preset's name comes first
    assert resolve("best").recipe.refit_kept == 0.5
    (tmp_path / "mine").write_text("sparsity: 0.125\nfinetune: {learning_rate: 3e-4}")  # a number, as YAML 1.2 has it
    assert (resolve("mine").recipe.sparsity, resolve("mine").recipe.finetune.learning_rate) == (0.125, 3e-4)
    with pytest.raises(SubFitError, match="there is no preset and no file 'bset'; did you mean 'best'\\? presets are best"):
        resolve("bset")


@pytest.mark.parametrize("beside", [{"scorer": "kl"}, {"scorer": "kl", "selected": []}])
def test_options_beside_a_configuration_are_not_ignored(beside, tmp_path):
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump({"configuration": {"scorer": "bi", "sparsity": 0.125}, **beside}))
    with pytest.raises(SubFitError, match="mixed.yaml has options beside its `configuration`, scorer; they belong in there"):
        resolve(str(path))


@pytest.mark.parametrize("given", [{"model": ""}, {"calibration": {"path": ""}}, {"finetune.lr_scheduler": ""}])
def test_an_empty_value_is_no_value(given):
    with pytest.raises(SubFitError, match="the value of (model|path|lr_scheduler) is empty; give one, or leave it out"):
        resolve(given)


BAD = {
    "sparsty": (0.5, "unknown option 'sparsty'; did you mean 'sparsity'?"),
    "sparsity": ("much", "sparsity is 'much'; it must be a number"),
    "seed": (1.5, "seed is 1.5; it must be a whole number"),
    "batch_size": (0, "batch_size is 0; it must be at least 1"),
    "fsdp": (1, "fsdp is 1; it must be true or false"),
    "budget": ("watts", "budget is 'watts'; it must be submodules or parameters or kv_bytes or flops or latency"),
    "protect": ([1], "protect[0] is 1; it must be a string"),
    "calibration.widows": (3, "calibration: unknown option 'widows'; did you mean 'windows'?"),
    "calibration.windows": ("few", "calibration.windows is 'few'; it must be a whole number"),
    "finetune.lora.rnk": (3, "finetune.lora: unknown option 'rnk'; did you mean 'rank'?"),
    "ffn_bypass": ("shared_lowrank", "ffn_bypass: unknown bypass 'shared_lowrank'; did you mean 'shared_low_rank'?"),
    "ffn_bypass.rang": (3, "ffn_bypass shared_low_rank: unknown option 'rang'; did you mean 'rank'?"),
    "ffn_bypass.rank": ("some", "ffn_bypass.rank is 'some'; it must be a whole number or auto"),
}


@pytest.mark.parametrize("option", BAD)
def test_what_is_wrong_is_one_line_that_is_the_same_from_python_from_a_file_and_from_the_command_line(option, tmp_path):
    value, message = BAD[option]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({option: value}))
    for source in ({option: value}, tmp_path / "bad.yaml", {option: Text(json.dumps(value).strip('"'))}):
        with pytest.raises(SubFitError) as caught:
            resolve(source)
        said = str(caught.value).replace("'1.5'", "1.5").replace("'1'", "1")  # a text is quoted
        assert message in said and "\n" not in said


def test_a_file_that_has_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    for text in ("ffn_bypass: linear\nffn_bypass: {ridge: 0.5}", '{"ffn_bypass": {"ridge": 1, "ridge": 2}}'):
        path.write_text(text)
        with pytest.raises(SubFitError, match="'(ffn_bypass|ridge)' is there twice.* line"):
            resolve(path)


def test_of_two_values_the_longer_key_wins_in_any_order_and_two_in_one_mapping_are_refused():
    both = {"ffn_bypass": {"class_path": "linear", "init_args": {"ridge": 0.1}}, "ffn_bypass.init_args.ridge": 0.2}
    for given in (both, dict(reversed(both.items()))):
        assert resolve(given).recipe.ffn_bypass.ridge == 0.2
    spelt = {"ffn_bypass": "linear", "ffn_bypass.init_args.ridge": 0.2, "ffn_bypass.ridge": 0.1}
    assert resolve(spelt).recipe.ffn_bypass.ridge == 0.2
    with pytest.raises(SubFitError, match="linear: ridge is given twice, as 0.2 in init_args and 0.1 beside it"):
        resolve({"ffn_bypass": {"class_path": "linear", "ridge": 0.1, "init_args": {"ridge": 0.2}}})


def test_an_object_that_cannot_be_written_down_is_asked_for_again():
    """A re-run that made another one of its class would be another run."""
    given = {"optimizer": partial(torch.optim.SGD, lr=0.1), "trainer": {"callbacks": [EarlyStopping("kl", patience=7)]}}
    plain = json.loads(json.dumps(configuration(resolve({"finetune": given, "logger": CSVLogger("logs")}))))
    messages = {
        "logger": r"logger was an object of Python \(lightning.pytorch.loggers.csv_logs.CSVLogger\) that the record",
        "finetune.optimizer": r"finetune.optimizer was an object of Python \(functools.partial\)",
        "finetune.trainer.callbacks": r"finetune.trainer.callbacks.0 was an .* \(lightning.*EarlyStopping\)",
    }
    again = {"logger": "none", "finetune.optimizer": "torch.optim.SGD", "finetune.trainer.callbacks": []}
    for option, message in messages.items():
        with pytest.raises(SubFitError, match=message):
            resolve(plain, {name: value for name, value in again.items() if name != option})
    assert resolve(plain, again).recipe.finetune.optimizer == "torch.optim.SGD"


@pytest.mark.parametrize("seed", [-1, 1 << 31])
def test_seeds_are_apart_from_those_of_evaluations(seed):
    with pytest.raises(SubFitError, match=f"seed is {seed}; it must be from 0 to 2147483647"):
        resolve({"seed": seed})


NONSENSE = [  # options, and what is wrong with them
    ({"sparsity": -0.1}, "sparsity is -0.1; it must be at least 0 and less than 1"),
    ({"sparsity": float("nan")}, "sparsity is nan; it must be a number"),
    ({"correction": float("inf")}, "correction is inf; it must be a number"),
    ({"target": "brnch"}, "target is 'brnch'; it must be branch or dense or corrected"),
    ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    ({"seed": 1 << 31}, "seed is 2147483648; it must be from 0 to 2147483647"),
    ({"scorer": "random", "scorer.seed": 0.5}, "scorer.seed is 0.5; it must be a whole number or null"),
    ({"scorer": "subfit", "scorer.quantile": 1.5}, "quantile is 1.5; it must be above 0 and at most 1"),
    ({"scorer": "kl", "scorer.windows": -1}, "windows is -1 and length is 256; they must be at least 1 and 2"),
    ({"selector": "greedy", "selector.length": 1}, "windows is 8 and length is 1; they must be at least 1 and 2"),
    ({"ffn_bypass": "linear", "ffn_bypass.ridge": -1.0}, "ridge is -1.0; it must not be negative"),
    ({"ffn_bypass": "linear", "ffn_bypass.ridge": float("nan")}, "ffn_bypass.ridge is nan; it must be a number"),
    ({"calibration.windows": -3}, "-3 windows of 512 tokens: at least 1 window of 2 tokens is needed"),
    ({"evaluation.windows": -1}, "-1 windows of 512 tokens: at least 0 window of 2 tokens is needed"),
    ({"calibration.source": "self+self"}, "data source 'self+self' names self twice"),
    ({"calibration.sampling": "last"}, "calibration.sampling is 'last'; it must be first or random"),
]


@pytest.mark.parametrize(("given", "message"), NONSENSE, ids=lambda value: "" if isinstance(value, str) else "-".join(value))
def test_values_that_make_no_sense_are_refused_in_python_in_a_file_and_on_the_command_line(given, message, tmp_path, capsys):
    with pytest.raises(SubFitError) as caught:
        resolve(given)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(given))
    typed_in = [part for name, value in given.items() for part in (f"--{name}", yaml.safe_dump(value).split("\n")[0])]
    for arguments in (["--config", str(tmp_path / "bad.yaml")], typed_in):
        assert main(["compress", *arguments, "--print_config"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in re.sub(r"'(1.5|0.5|\.nan|\.inf)'", lambda found: found[1].lstrip("."), line)  # a text is quoted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Data(windows=1.5), "windows is 1.5; it must be a whole number"),
        (lambda: Data(length="512"), "length is '512'; it must be a whole number"),
        (lambda: Data(path=[1]), r"path is \[1\]; it must be a path, or a list of paths"),
        (lambda: Data(source="text+text", path="a.txt"), "'text.text' names text twice"),
        (lambda: replace(resolve().recipe, target="brnch"), "target is 'brnch'; it must be branch or dense or corrected"),
        (lambda: replace(resolve().recipe, correction=float("nan")), "correction is nan; it must be a number"),
        (lambda: replace(resolve(), seed=1.5), "seed is 1.5; it must be a whole number"),
    ],
)
def test_what_is_made_in_python_is_checked_as_well(make, message):
    with pytest.raises(SubFitError, match=message):
        make()


@pytest.mark.parametrize("name", registry.names("bypasses"))
@pytest.mark.parametrize("ridge", [-1e-4, float("nan")])
def test_every_bypass_refuses_a_ridge_that_is_none_when_it_is_made(name, ridge):
    found = registry.find("bypasses", name)
    if "ridge" in inspect.signature(found).parameters:
        with pytest.raises(SubFitError, match=f"ridge is {ridge}; it must not be negative"):
            found(ridge=ridge)


def test_options_are_named_by_strings():
    with pytest.raises(SubFitError, match="1 is no option; options are named by strings"):
        resolve({1: 2})
