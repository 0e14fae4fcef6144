"""YAML and JSON: what is read, and what is refused in one line before it takes memory."""

from itertools import pairwise

import pytest
import yaml

from subfit.cli.main import main
from subfit.config import resolve
from subfit.errors import SubFitError
from subfit.options.reading import parse, read_mapping

BOMB = "\n".join(["a: &a [1, 1]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi"))])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2026-11-24", "2026-11-24"),  # which YAML 1.1 takes for a date
        ("2026-11-24 10:00:00", "2026-11-24 10:00:00"),
        ("1:30", "1:30"),  # and this for 90
        ("010", "010"),  # and this for 8
        ("[0, -1, 0x1F, 1_000, .5, -0.5, 1., 2E+1]", [0, -1, 31, 1000, 0.5, -0.5, 1.0, 20.0]),
        ("{a: [1, null, true, x]}", {"a": [1, None, True, "x"]}),
        ("{a: &a {b: 1}, c: *a}", {"a": {"b": 1}, "c": {"b": 1}}),
        ("", None),
    ],
)
def test_what_is_read(text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("protect: !!set {a, b}", "could not determine a constructor for the tag 'tag:yaml.org,2002:set'"),
        ("model: !!binary aGVsbG8=", "could not determine a constructor"),
        ("model: !!timestamp 2026-11-24", "could not determine a constructor"),
        ("model: !!python/name:os.system x", "could not determine a constructor"),
        ("seed: !!int abc", "a value does not fit its tag"),
        ("fsdp: !!bool maybe", "a value does not fit its tag"),
        ("finetune: &a {trainer: *a}", "it contains itself"),
        ("protect: &a [*a]", "it contains itself"),
        (BOMB, "it holds more than 100,000 values"),
        ("protect: " + "[" * 60 + "]" * 60, "nested more than 50 levels deep"),
        ("protect: " + "[" * 5000, "nested more than 50 levels deep"),
        ("? [a, b]\n: 1", "unhashable key"),
        ("1: 2", "must be a mapping of options"),
        ("\x00", "special characters are not allowed"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_refused_in_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["compress", "--config", str(path), "--print_config"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_value_that_explodes_is_refused_on_the_command_line_too(capsys):
    """What cannot be read as YAML is a string there, as it is anywhere."""
    assert main(["compress", "--protect", "&a [*a]", "--print_config"]) == 2
    assert "protect is '&a [*a]'; it must be a list" in capsys.readouterr().err


def test_aliases_may_be_used_as_in_the_presets():
    assert resolve({**yaml.safe_load("attention_bypass: &a {class_path: linear}\nffn_bypass: *a")})


def test_json_may_be_indented_by_tabs(tmp_path):
    (tmp_path / "a.json").write_text('{\n\t"sparsity": 0.5,\n\t"model": "a\\tb"\n}')
    assert read_mapping(str(tmp_path / "a.json")) == {"sparsity": 0.5, "model": "a\tb"}


def test_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SubFitError, match="the configuration gone.yaml does not exist .paths are relative to the folder"):
        read_mapping("gone.yaml")
