"""The text files that paths, globs and folders stand for."""

import pytest
import torch
from conftest import tiny_tokenizer

from subfit.calibration.data import describe_tokens, read_tokens
from subfit.calibration.files import opened, text_files
from subfit.calibration.settings import Data
from subfit.errors import SubFitError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Some files, with names out of order, and others that are no text."""
    for name in ("texts/b.TXT", "texts/a.txt", "texts/deep/c.Jsonl", "texts/deep/no.csv", "texts/.hidden/d.txt", "x[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "c"}' if name.endswith("Jsonl") else f"{name} ")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["texts/b.TXT"], ["texts/b.TXT"]),
        (["texts"], ["texts/a.txt", "texts/b.TXT", "texts/deep/c.Jsonl"]),
        (["texts/"], ["texts/a.txt", "texts/b.TXT", "texts/deep/c.Jsonl"]),
        (["texts/*"], ["texts/a.txt", "texts/b.TXT"]),
        (["**/*.txt"], ["texts/a.txt", "x[1].txt"]),
        (["texts/**"], ["texts/a.txt", "texts/b.TXT", "texts/deep/c.Jsonl"]),
        (["x[1].txt"], ["x[1].txt"]),  # which is no glob where there is such a file
        (["texts/b.TXT", "texts", "./texts/a.txt"], ["texts/b.TXT", "texts/a.txt", "texts/deep/c.Jsonl"]),
    ],
)
def test_files_are_sorted_and_each_is_there_once(paths, names):
    assert text_files(paths) == names


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.txt", r"text file gone.txt does not exist \(paths are relative to the folder that the command runs in, .*\)"),
        ("/gone/b.txt", "text file /gone/b.txt does not exist$"),
        ("texts/*.parquet", r"there is no text file in texts/\*.parquet .*; use .txt, .jsonl or .parquet"),
        ("texts/deep/*.csv", r"there is no text file in texts/deep/\*.csv"),
        ("empty", "there is no text file in empty"),
        ("texts/deep/no.csv", "text file texts/deep/no.csv: its type is not known"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(path, message):
    with pytest.raises(SubFitError, match=message) as caught:
        text_files([path])
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_one_line():
    with pytest.raises(SubFitError, match="cannot read the text file texts: Is a directory"), opened("texts"):
        pass


def test_a_file_that_lies_beside_what_names_it_is_pointed_at():
    with pytest.raises(SubFitError, match=r"runs in, .*\); there is texts/deep/c.Jsonl: give this path"):
        text_files(["c.Jsonl"], ["texts/deep/grid.yaml"])


def test_a_folder_is_read_in_order_and_the_record_says_what_was_read():
    data = Data(path="texts", windows=1, length=25)
    tokens, *_ = read_tokens(data, None, tiny_tokenizer(), 0)
    assert torch.equal(tokens[0], torch.tensor(tiny_tokenizer()("texts/a.txt texts/b.TXT c\n\n")["input_ids"][:25]))
    assert data.path == ["texts"]
    assert describe_tokens(tokens, data)["files"] == ["texts/a.txt", "texts/b.TXT", "texts/deep/c.Jsonl"]
    assert "files" not in describe_tokens(tokens, Data(source="self"))
