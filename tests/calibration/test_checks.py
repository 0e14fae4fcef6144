"""Whether tokens suit the model, and each other."""

import json

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer, tiny_tokens

import subfit
from subfit.calibration.checks import shared_windows
from subfit.calibration.data import read_tokens
from subfit.calibration.settings import Data
from subfit.errors import SubFitError


def test_windows_beyond_learned_positions_are_refused_and_beyond_rotary_ones_warned_of(text_file, caplog):
    data = Data(path=str(text_file), windows=2, length=40)
    with pytest.raises(SubFitError, match="windows of 40 tokens are longer than the 32 positions .* length of at most 32"):
        read_tokens(data, tiny_model("gpt2", max_position_embeddings=32), tiny_tokenizer(), 0)
    assert not caplog.messages
    short = tiny_model(max_position_embeddings=32)
    for seed in (0, 1):  # as for the calibration and for the evaluation of one run
        read_tokens(data, short, tiny_tokenizer(), seed)
    (line,) = caplog.messages
    assert "windows of 40 tokens are longer than the 32 positions of the model" in line
    read_tokens(Data(path=str(text_file), windows=2, length=32), tiny_model(max_position_embeddings=32), tiny_tokenizer(), 0)
    assert len(caplog.messages) == 1


def test_tokens_outside_of_the_vocabulary_are_refused(text_file):
    with pytest.raises(SubFitError, match=r"text.txt: token \d+ is outside of the model's 30; is it another tokenizer's?"):
        read_tokens(Data(path=str(text_file), windows=2, length=8), tiny_model(vocab_size=30), tiny_tokenizer(), 0)


@pytest.mark.parametrize("sampling", ["first", "random"])
def test_windows_of_a_text_that_repeats_itself_are_different(tmp_path, sampling):
    (tmp_path / "a.txt").write_text("".join(f"{i % 7:03d}\n" for i in range(100)))
    data = {"path": str(tmp_path / "a.txt"), "length": 4, "sampling": sampling}
    tokens, rest, _ = read_tokens(Data(**data, windows=4), None, tiny_tokenizer(), 0, held_out=3)
    assert len({tuple(window.tolist()) for window in torch.cat([tokens, rest])}) == 7
    with pytest.raises(SubFitError, match="28 tokens, 7 windows of 4 .equal ones once.; 8 windows were asked for"):
        read_tokens(Data(**data, windows=8), None, tiny_tokenizer(), 0)


def test_files_that_no_window_is_from_are_warned_of(tmp_path, caplog):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i:03d}\n" for i in range(10)))
    data = {"path": str(tmp_path), "length": 5}
    for windows in ({"windows": 8, "sampling": "random"}, {"windows": 24}):
        read_tokens(Data(**data, **windows), None, tiny_tokenizer(), 0)
    assert not caplog.messages
    read_tokens(Data(**data, windows=9), None, tiny_tokenizer(), 0, held_out=2)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: only the first 2 of 3 files are used, which have enough windows; `sampling")


def test_shared_windows_are_found_wherever_they_begin():
    tokens = tiny_tokens(6, 16)
    assert shared_windows(tokens[2:4], tokens) == 2 and shared_windows(tiny_tokens(3, 16, seed=1), tokens) == 0
    assert shared_windows(tokens.view(3, 32)[:2], tokens) == 2  # longer ones
    assert shared_windows(tokens.flatten()[5:15].view(2, 5), tokens) == 2  # shorter ones, between two
    assert shared_windows(tokens[:0], tokens) == 0


def compressed(text_file, **given):
    data = {"path": str(text_file), "windows": 4, "length": 32}
    return subfit.compress(tiny_model(), tokenizer=tiny_tokenizer(), calibration=data, **given)


def test_evaluation_on_calibration_windows_is_warned_of_and_in_the_record(text_file, caplog):
    held_out = compressed(text_file, evaluation={"windows": 2}).record
    assert held_out["evaluation_tokens"]["in_calibration"] == 0 and not caplog.messages
    assert held_out["evaluation_tokens"]["files"] == held_out["calibration_tokens"]["files"] == [str(text_file)]
    same = compressed(text_file, evaluation={"path": str(text_file), "windows": 6, "length": 32}).record
    assert same["evaluation_tokens"]["in_calibration"] == 4
    (line,) = caplog.messages
    assert line.startswith("evaluation: 4 of 6 windows are among those of the calibration: what is measured on them")


def test_a_run_from_a_record_says_if_it_reads_other_tokens(text_file, model_folder, tmp_path, monkeypatch, caplog):
    """As where a relative path leads to another file from another folder."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(("" if folder == "one" else "another ") + text_file.read_text())
    monkeypatch.chdir(tmp_path / "one")
    data = {"path": "text.txt", "windows": 4, "length": 32}
    first = subfit.compress(str(model_folder), calibration=data, evaluation={"windows": 1}, output="model")
    record = str(tmp_path / "one" / "model" / "compression.json")
    assert json.loads((tmp_path / "one" / "model" / "compression.json").read_text()) == first.record
    again = subfit.compress(config=record, output="again")
    assert again.record["calibration_tokens"] == first.record["calibration_tokens"] and not caplog.messages
    monkeypatch.chdir(tmp_path / "two")
    subfit.compress(config=str(tmp_path / "one" / "model"), calibration={"windows": 5}, output="asked")
    assert not caplog.messages  # other windows were asked for
    subfit.compress(config=record, output="other")
    (line,) = caplog.messages
    assert line.startswith(f"the calibration tokens are not those of {record}") and "\n" not in line
