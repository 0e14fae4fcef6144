"""Values by type, such as other parts of the configuration will declare them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from subfit.errors import SubFitError
from subfit.options.sources import Text, merge, unfold
from subfit.options.typed import typed
from subfit.registry import made, plain


@dataclass
class Settings:
    trainer: dict[str, Any] = field(default_factory=dict)
    optimizer: Any = None
    loggers: list[Any] = field(default_factory=list)
    rates: Sequence[float] = ()
    schedule: Callable[[int], float] | None = None


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "3", 3),
        (float, "3", 3.0),
        (float, "1e-3", 1e-3),
        (bool, "true", True),
        (str, "3", "3"),
        (str, "null", "null"),
        (str | None, "null", None),
        (str | None, "3", "3"),
        (int | Literal["auto"], "auto", "auto"),
        (int | Literal["auto"], "3", 3),
        (Literal["on", "off"], "off", "off"),  # which YAML takes for false
        (list[str], "[a, b]", ["a", "b"]),
        (str | list[str], "[a, b]", ["a", "b"]),
        (str | list[str], "a b", "a b"),
        (str, "[a", "[a"),
        (dict[str, float], "{a: 1}", {"a": 1.0}),
        (Any, "1e-3", 1e-3),
        (Any, "csv", "csv"),
        (tuple[float, ...], "[1, 2]", (1.0, 2.0)),
    ],
    ids=str,
)
def test_what_is_typed_is_read_as_what_is_wanted(hint, text, value):
    found = typed(hint, Text(text), "option", made)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, True),
        (int, "3"),
        (float, "3"),
        (bool, 1),
        (str, 3),
        (list[int], "12"),
        (dict[str, int], [1]),
        (Settings, 3),
        (Callable[..., int] | None, 3),
    ],
    ids=str,
)
def test_what_is_given_is_not_guessed_at(hint, value):
    with pytest.raises(SubFitError, match="option is .*; it must be "):
        typed(hint, value, "option", made)


def test_open_groups_take_dotted_keys_and_objects_and_are_written_down():
    callback = object()
    first = unfold(
        {"trainer.max_steps": Text("200"), "trainer.callbacks": [callback], "optimizer.class_path": "torch.optim.SGD"}
    )
    later = unfold({"optimizer.lr": Text("1e-2"), "trainer.max_steps": 300, "loggers": ["csv", {"class_path": "x.Y"}]})
    settings = typed(Settings, merge(first, later), "finetune", made)
    assert settings.trainer == {"max_steps": 300, "callbacks": [callback]} and settings.trainer["callbacks"][0] is callback
    assert settings.optimizer == {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-2}}
    assert plain(settings)["trainer"] == {"max_steps": 300, "callbacks": [{"unrecorded": "builtins.object"}]}
    assert plain({"a": (1, Path("b")), "c": Settings}) == {"a": [1, "b"], "c": "test_typed.Settings"}
    assert plain(lambda: 1)["unrecorded"].endswith("<lambda>") and plain(torch.optim.SGD) == "torch.optim.sgd.SGD"


def test_a_value_of_many_lines_is_shown_in_one():
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(50)))
    with pytest.raises(SubFitError) as caught:
        typed(float, model, "sparsity", made)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_callables_and_sequences():
    def schedule(step: int) -> float:
        return 1.0

    found = typed(Settings, {"schedule": schedule, "rates": (1, 2)}, "finetune", made)
    assert found.schedule is schedule and list(found.rates) == [1.0, 2.0]
    with pytest.raises(SubFitError, match=r"finetune.rates\[1\] is 'x'; it must be a number"):
        typed(Settings, {"rates": [1, "x"]}, "finetune", made)
