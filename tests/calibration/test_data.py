import json

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer

from subfit.calibration import text as reading
from subfit.calibration.data import read_tokens
from subfit.calibration.settings import Data, EvaluationData, evaluation_seed
from subfit.errors import SubFitError

TEXT = "the quick brown fox jumps over the lazy dog. " * 40


def cut(data: Data, seed: int = 0, held_out: int = 0):
    return read_tokens(data, tiny_model(), tiny_tokenizer(), seed, held_out)[:2]


@pytest.fixture
def files(tmp_path):
    import pandas

    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"row {i} " * 9, "other": 1}) + "\n" for i in range(20)))
    pandas.DataFrame({"text": [f"row {i} " * 9 for i in range(20)]}).to_parquet(tmp_path / "a.parquet")
    return tmp_path


def test_text_is_cut_into_consecutive_windows(files):
    tokens, rest = cut(Data(path=str(files / "a.txt"), windows=3, length=16), held_out=2)
    assert tokens.shape == (3, 16) and rest.shape == (2, 16)
    ids = tiny_tokenizer()(TEXT)["input_ids"]
    assert torch.cat([tokens, rest]).flatten().tolist() == ids[:80]


def test_rows_of_json_lines_and_parquet_are_joined_by_blank_lines(files):
    both = [cut(Data(path=str(files / name), windows=4, length=32))[0] for name in ("a.jsonl", "a.parquet")]
    assert torch.equal(*both)
    assert tiny_tokenizer().decode(both[0].flatten()).replace(" ", "").startswith("row0" * 9)


def test_sampled_windows_begin_as_the_prompts_say():
    tokens, _, further = read_tokens(
        Data(prompts=["fox", "dog"], windows=2, length=16), tiny_model(), tiny_tokenizer(), 0, 0, 2
    )
    words = ["".join(tiny_tokenizer().decode(window).split())[:3] for window in torch.cat([tokens, further])]
    assert words == ["fox", "dog"] * 2


def test_a_source_whose_share_is_no_window_is_not_read(files):
    data = Data(source="text:9+self:1", path=str(files / "a.txt"), windows=1, length=16)
    assert torch.equal(cut(data)[0], cut(Data(path=str(files / "a.txt"), windows=1, length=16))[0])


def test_several_files_follow_each_other(files):
    length = len(TEXT)
    tokens, _ = cut(Data(path=[str(files / "a.txt"), str(files / "a.jsonl")], windows=1, length=length + 8))
    assert tokens[0, length:].tolist() == tiny_tokenizer()("row 0 ro")["input_ids"]


def numbered(folder, windows=200):
    """A text whose windows of four tokens are all different: 001, 002 and so on, a line for each."""
    (folder / "numbers.txt").write_text("".join(f"{i:03d}\n" for i in range(windows)))
    return str(folder / "numbers.txt")


def read(tokens):
    """The numbers of windows of that text."""
    return [int(tiny_tokenizer().decode(window).replace(" ", "").strip()) for window in tokens]


def test_random_windows_are_drawn_by_the_seed_from_the_whole_text_without_repetition(tmp_path):
    data = Data(path=numbered(tmp_path), windows=8, length=4, sampling="random")
    first, again, other = (cut(data, seed, held_out=4) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and not torch.equal(first[0], other[0])
    drawn = [[*read(tokens), *read(rest)] for tokens, rest in (cut(data, seed, held_out=4) for seed in range(300))]
    assert all(len(set(numbers)) == 12 for numbers in drawn)  # the held-out windows are others
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=200).float()
    assert counts.min() > 0 and abs(counts[:100].sum() / counts.sum() - 0.5) < 0.03  # 18 of each window
    held_out = torch.tensor(drawn)[:, 8:].float()
    assert abs(held_out.mean() - 99.5) < 7  # standard error: 1.7


def test_all_windows_of_a_text_are_drawn_if_as_many_are_asked_for(tmp_path):
    tokens, _ = cut(Data(path=numbered(tmp_path, 20), windows=20, length=4, sampling="random"))
    assert sorted(read(tokens)) == list(range(20)) != read(tokens)
    with pytest.raises(SubFitError, match=r"20 windows of 4 \(equal ones once\); 21 windows were asked for"):
        cut(Data(path=numbered(tmp_path, 20), windows=21, length=4, sampling="random"))


def test_the_draw_does_not_depend_on_the_blocks_that_are_read(tmp_path, monkeypatch):
    data = Data(path=numbered(tmp_path), windows=8, length=3, sampling="random")
    whole = cut(data)[0]
    monkeypatch.setattr(reading, "BLOCK", 10)
    assert torch.equal(cut(data)[0], whole)


def test_rows_of_a_data_set_are_shuffled_by_the_seed(files, monkeypatch):
    import datasets

    rows = datasets.load_dataset("json", data_files=str(files / "a.jsonl"), split="train", streaming=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    data = {"dataset": "somebody/rows", "windows": 4, "length": 32}
    first = cut(Data(**data))[0]
    drawn, again, other = (cut(Data(**data, sampling="random"), seed)[0] for seed in (0, 0, 1))
    assert torch.equal(drawn, again) and not torch.equal(drawn, other) and not torch.equal(drawn, first)


def test_what_is_wrong_is_said_without_a_model():
    for given, message in (
        ({"source": "txt"}, "unknown data source 'txt'"),
        ({"sampling": "last"}, "sampling is 'last'; it must be first or random"),
    ):
        with pytest.raises(SubFitError, match=message):
            EvaluationData(**given)
    assert EvaluationData(windows=0).windows == 0


def test_sampled_texts_to_evaluate_on_are_never_those_of_a_calibration_nor_each_other():
    seeds = [evaluation_seed(seed, text) for seed in range(3) for text in ("", "story", "code")]
    samples = [cut(Data(windows=1, length=32), seed)[0] for seed in [0, 1, 2, *seeds]]
    assert len({tuple(tokens[0].tolist()) for tokens in samples}) == 12  # torch draws the same for seeds equal in 32 bits


def test_sources_are_mixed_in_equal_shares(files):
    mixed = Data(source="text+self", path=str(files / "a.txt"), windows=5, length=16)
    tokens, rest = cut(mixed, held_out=2)
    text, _ = cut(Data(path=str(files / "a.txt"), windows=4, length=16))
    assert torch.equal(tokens[:3], text[:3]) and torch.equal(rest[:1], text[3:])
    assert (tokens[3:, 0] == 1).all() and (rest[1:, 0] == 1).all() and tokens.shape == (5, 16) and rest.shape == (2, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "books"}, "unknown data source 'books'; use self, text, hub, repeated, given, or several"),
        ({"source": "text"}, "'text' needs a path"),
        ({"source": "hub"}, "'hub' needs a dataset"),
        ({"path": "missing.txt"}, "missing.txt does not exist"),
        (
            {"path": "{folder}/a.txt", "windows": 1000},
            "728 tokens, 45 windows of 16 .equal ones once.; 1000 windows were asked for",
        ),
        ({"path": "{folder}/empty.txt"}, "empty.txt holds 0 tokens"),
        ({"path": "{folder}/binary.txt"}, "binary.txt is not UTF-8"),
        ({"path": "{folder}/a.csv"}, "use .txt, .jsonl or .parquet"),
        (
            {"path": "{folder}/a.jsonl", "column": "body"},
            "line 1: there is no column 'body'; there are text, other",
        ),
        ({"path": "{folder}/broken.jsonl"}, "cannot read .*broken.jsonl"),
        ({"dataset": "nobody/nothing"}, "cannot read nobody/nothing"),
        ({"length": 1}, "at least 1 window of 2 tokens"),
        ({"windows": 0}, "at least 1 window"),
    ],
)
def test_bad_input_is_one_clear_error(files, given, message):
    (files / "empty.txt").write_text("")
    (files / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (files / "a.csv").write_text("text\n")
    (files / "broken.jsonl").write_text("{not json\n")
    given = {k: v.format(folder=files) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(SubFitError, match=message) as error:
        cut(Data(**{"windows": 2, "length": 16, **given}))
    assert "\n" not in str(error.value)


def test_sources_are_mixed_by_their_weights(files):
    mixed = Data(source="text:2+self:1+repeated", path=str(files / "a.txt"), windows=9, length=17)
    tokens, rest = cut(mixed, held_out=3)
    text, _ = cut(Data(path=str(files / "a.txt"), windows=7, length=17))
    assert tokens.shape == (9, 17) and rest.shape == (3, 17)
    assert torch.equal(tokens[:5], text[:5]) and torch.equal(rest[:2], text[5:])  # halves are rounded to the first
    assert (tokens[5:, 0] == 1).all() and rest[2, 0] == 1
    assert torch.equal(tokens[7:, 1:], tokens[7:, 1:5].repeat(1, 4)) and not torch.equal(tokens[5:7, 1:9], tokens[5:7, 9:])
    assert tokens[7:, 1:].min() > 2 and not torch.equal(tokens[7], tokens[8])
    again, _ = cut(mixed, held_out=3)
    assert torch.equal(tokens, again) and not torch.equal(tokens[7:], cut(mixed, seed=1)[0][7:])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text:0+self", "text has the weight '0'; give a whole number from 1"),
        ("text:+self", "text has the weight ''"),
        (f"text:{'9' * 5000}+self", "give a whole number from 1 to 999999999"),
        ("text:1.5+self", "text has the weight '1.5'"),
        ("text:2+text:1", "names text twice"),
        ("text+given", "names text twice"),
        ("self+given:0", "given has the weight '0'"),
    ],
)
def test_a_weight_that_is_no_number_above_0_is_refused(source, message):
    with pytest.raises(SubFitError, match=message):
        Data(source=source, path="a.txt")


@pytest.mark.parametrize(
    ("data", "weights"),
    [
        ({}, {"self": 15, "repeated": 2}),
        ({"path": "a.txt"}, {"text": 15, "self": 15, "repeated": 2}),
        ({"path": "a.txt", "dataset": "somebody/rows"}, {"text": 15, "hub": 15, "self": 15, "repeated": 2}),
    ],
)
def test_given_stands_for_what_there_is(data, weights):
    assert Data(source="given:15+self:15+repeated:2", **data).weights() == weights
    assert Data(source="given", **data).weights() == Data(**data).weights()


@pytest.mark.parametrize("sampling", ["first", "random"])
@pytest.mark.parametrize("source", ["text", "hub", "self", "repeated", "text:2+self:1+repeated:1"])
def test_further_windows_are_others_of_the_same_sources_and_change_nothing(source, sampling, tmp_path, monkeypatch):
    import datasets

    rows = [{"text": f"row {i} of some hundred rows, "} for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    given = {"hub": {"dataset": "somebody/rows"}, "text": {"path": str(tmp_path / "rows.jsonl")}}.get(
        source[:4].strip(":"), {}
    )
    data = Data(source=source, **given, windows=8, length=16, sampling=sampling)
    held_out = 0 if source == "repeated" else 4
    some, more = (read_tokens(data, tiny_model(), tiny_tokenizer(), 0, held_out, further) for further in (0, 20))
    assert torch.equal(some[0], more[0]) and torch.equal(some[1], more[1]) and some[2].shape == (0, 16)
    assert more[2].shape == (20, 16) and len({tuple(window) for part in more for window in part.tolist()}) == 28 + held_out
    if "+" in source:
        assert (more[2][:10, 0] > 1).all() and (more[2][10:, 0] == 1).all()
        assert torch.equal(more[2][15:, 1:8], more[2][15:, 9:]) and not torch.equal(more[2][10:15, 1:8], more[2][10:15, 9:])


def test_further_windows_of_a_random_draw_are_drawn_from_all_that_it_leaves(tmp_path):
    data = Data(path=numbered(tmp_path), windows=8, length=4, sampling="random")
    drawn = [read(read_tokens(data, tiny_model(), tiny_tokenizer(), seed, 4, 12)[2]) for seed in range(300)]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=200).float()
    assert counts.min() > 0 and abs(counts[:100].sum() / counts.sum() - 0.5) < 0.03  # 18 of each window
    data = Data(path=numbered(tmp_path, 20), windows=8, length=4, sampling="random")
    parts = read_tokens(data, tiny_model(), tiny_tokenizer(), 0, 4, 8)
    assert sorted(read(torch.cat(parts))) == list(range(20))
    with pytest.raises(SubFitError, match=r"20 windows of 4 \(equal ones once\); 21 windows were asked for"):
        read_tokens(data, tiny_model(), tiny_tokenizer(), 0, 4, 9)


def test_a_text_that_is_too_short_is_known_before_anything_is_sampled(files, monkeypatch):
    monkeypatch.setattr("subfit.calibration.data.sample", None)
    data = Data(source="self+text", path=str(files / "a.txt"), windows=8, length=16)
    with pytest.raises(SubFitError, match="a.txt holds 728 tokens, 45 windows of 16 .equal ones once.; 104 windows were"):
        read_tokens(data, tiny_model(), tiny_tokenizer(), 0, further=200)


def test_nothing_is_held_out_of_repeated_tokens():
    data = Data(source="repeated", windows=2, length=8)
    assert cut(data)[0].shape == (2, 8)
    with pytest.raises(SubFitError, match="there is no text to hold out"):
        cut(data, held_out=1)
