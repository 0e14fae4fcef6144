"""The help on options that dataclasses declare, from their source: nothing is imported for it."""

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator

from subfit.config import DEFAULTS
from subfit.options.declarations import Argument, Class, SourceFile, documented, file_of, read

WIDTH = 110  # columns of the help where the terminal has no fewer
GROUPS = {"recipe": "Method", "calibration": "Calibration", "evaluation": "Evaluation", "finetune": "Fine-tuning"}


def options_help(module: str, name: str) -> str:
    """Returns what there is to say of each option of a dataclass, and of those inside it, in groups."""
    width = min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
    groups: dict[str, list[str]] = {group: [] for group in ("Run", *GROUPS.values())}
    for group, option, text in _options(module, name, "", "Run"):
        lines = textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        groups[group] += [f"  --{option} VALUE", *lines]
    return "\n\n".join("\n".join([f"{group}:", *lines]) for group, lines in groups.items() if lines)


def with_default(argument: Argument, text: str) -> str:
    """Returns what is said of an option, as a sentence, with its default if that is a plain value."""
    default = DEFAULTS.get(argument.name, argument.default)
    shown = str(default or "").strip("'\"")
    if default is None or shown == "None" or "(" in shown and not shown.startswith("("):
        shown = ""
    sentence = text[:1].upper() + text[1:].rstrip(".")
    return f"{sentence} [{shown}]" if shown else sentence


def _options(module: str, name: str, before: str, group: str) -> Iterator[tuple[str, str, str]]:
    """Each option: its group, its name with dots, and what is said of it."""
    file = file_of(module)
    assert file is not None
    source = read(file)
    declared = source.classes[name]
    texts, fields = _of_class(source, declared)
    for argument in fields.values():
        nested = _dataclass_in(source, module, argument.annotation or "")
        if nested is not None:
            inside = "" if argument.name == "recipe" else f"{before}{argument.name}."
            yield from _options(*nested, inside, GROUPS.get(argument.name, group))
        else:
            yield group, f"{before}{argument.name}", with_default(argument, texts.get(argument.name, ""))


def _of_class(source: SourceFile, declared: Class) -> tuple[dict[str, str], dict[str, Argument]]:
    """The documentation, and the fields, of a dataclass and of those in its file that it extends."""
    texts, fields = dict[str, str](), dict[str, Argument]()
    for base in declared.bases:
        if base in source.classes:
            more_texts, more_fields = _of_class(source, source.classes[base])
            texts, fields = texts | more_texts, fields | more_fields
    return texts | documented(declared.documentation), fields | {a.name: a for a in declared.arguments}


def _dataclass_in(source: SourceFile, module: str, annotation: str) -> tuple[str, str] | None:
    """The module and the name of the dataclass that an annotation names, if it names one."""
    for name in re.findall(r"\w+", annotation):
        origin, original = source.imports.get(name, (module, name))
        file = file_of(origin) if origin.startswith("subfit.") else None
        found = read(file).classes.get(original) if file else None
        if found is not None and found.is_dataclass:
            return origin, original
    return None
