"""What holds where a command line says of one option more than one thing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from subfit.options.reading import parse
from subfit.options.sources import Text, as_mapping, read_source, unfold


def overruled(given: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """Yields a line for each value of a command line that does not hold although it stands last.

    Options win over configurations wherever they stand; where an option stands before a `--config` that says something else,
    there is a line for it, and so there is where one option is given twice, of which the later holds. Of several
    configurations the later wins, which is what they are for: that is not reported.

    Args:
        given: the options in the order of the command line, each with its value; those called `config` name configurations.

    Raises:
        SubFitError: if a configuration cannot be read.
    """
    final, before = dict(given), dict[str, Any]()
    for name, value in given:
        if name == "config":
            content = unfold(read_source(str(value)))
            for option in (option for option, said in before.items() if said == final[option]):
                for place, holds, other in _differences(final[option], _found(option, content), option):
                    yield f"--{place} {_shown(holds)} holds, and not {_shown(other)} of the later --config {value}"
            continue
        if name in before and before[name] != value:
            yield f"--{name} is given twice: the later {_shown(value)} holds, and not {_shown(before[name])}"
        before[name] = value


def _found(option: str, content: Mapping[str, Any]) -> Any:
    """The value of an option, which may be dotted, in a configuration; None if it is not there."""
    first, *rest = option.split(".")
    found: Any = content.get(first)
    for part in rest:
        inside = as_mapping(found)
        found = inside.get(part, as_mapping(inside.get("init_args")).get(part))
    return found


def _differences(holds: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Each place where two values differ, if both are there, with the values."""
    if other is None or _is_equal(holds, other):
        return
    if isinstance(holds, Mapping) and isinstance(other, Mapping) and "class_path" not in holds:
        for key in holds:
            yield from _differences(holds[key], _found(key, other), f"{place}.{key}")
        return
    yield place, holds, other


def _is_equal(holds: Any, other: Any) -> bool:
    """Whether two values say the same, one of which may be a text, or the name of a strategy."""
    if isinstance(holds, Text):
        try:
            read = parse(holds)
        except yaml.YAMLError:
            read = None
        if other in (str(holds), read):
            return True
    if isinstance(holds, str) and isinstance(other, Mapping):
        return other.get("class_path") == holds and not other.get("init_args")
    return bool(holds == other)


def _shown(value: Any) -> str:
    """A value as it would be typed; of a strategy, its name and which arguments are given."""
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = ", ".join(as_mapping(value.get("init_args")))
        return f"{value['class_path']} with {arguments}" if arguments else str(value["class_path"])
    return " ".join(str(value).split())
