"""Rows of .jsonl and .parquet files and of the hub: texts, conversations, and what is neither."""

import json

import pandas
import pytest
from conftest import tiny_tokenizer

from subfit.calibration.data import read_tokens
from subfit.calibration.settings import Data
from subfit.calibration.text import read_texts
from subfit.errors import SubFitError

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def write(folder, rows, kind="jsonl"):
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pandas.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def with_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def texts_of(path, tokenizer=None, **options):
    data = Data(path=path, **options)
    return list(read_texts(data, data.files(), tokenizer or tiny_tokenizer(), 0, "text"))


def test_a_name_that_looks_like_a_glob_is_one_file(tmp_path):
    for name in ("a[1].parquet", "a1.parquet"):
        pandas.DataFrame([{"text": name}]).to_parquet(tmp_path / name)
    assert texts_of(str(tmp_path / "a[1].parquet")) == ["a[1].parquet\n\n"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_texts_are_as_they_stand_and_empty_ones_are_skipped(tmp_path, kind):
    rows = [{"text": "2026-11-24"}, {"text": ""}, {"text": "b\n"}, {"text": "None"}]
    assert texts_of(write(tmp_path, rows, kind)) == ["2026-11-24\n\n", "b\n\n\n", "None\n\n"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_conversations_are_rendered_by_the_chat_template(tmp_path, kind):
    rendered = with_template().apply_chat_template(CHAT, tokenize=False)
    assert rendered == "<s>user: hi</s><s>assistant: yes</s>"
    for column in ("messages", "talk"):
        path = write(tmp_path, [{column: CHAT}] * 2, kind)
        options = {} if column == "messages" else {"column": column}  # taken where there is no column `text`
        assert texts_of(path, with_template(), **options) == [rendered] * 2
    assert texts_of(write(tmp_path, [{"text": "a", "messages": CHAT}], kind), with_template()) == ["a\n\n"]


def test_special_tokens_of_the_template_are_single_tokens_and_nothing_is_added(tmp_path):
    path = write(tmp_path, [{"messages": CHAT}, {"messages": CHAT[:1]}])
    tokens, *_ = read_tokens(Data(path=path, windows=1, length=36), None, with_template(), 0)
    ids = with_template().convert_tokens_to_ids
    words = [[1, *(ids(c) for c in text), 2] for text in ("user: hi", "assistant: yes", "user: hi")]
    assert tokens[0].tolist() == sum(words, [])[:36]


def test_a_conversation_needs_a_template_that_takes_it(tmp_path):
    path = write(tmp_path, [{"messages": CHAT}, {"messages": [{"role": "bad", "content": "x"}]}])
    with pytest.raises(SubFitError, match="rows.jsonl, line 1 holds a conversation, but the model's tokenizer has no chat"):
        texts_of(path)
    with pytest.raises(SubFitError, match="line 2: the chat template refuses the conversation: no such role"):
        texts_of(path, with_template())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "line 2: text is None; it must be a text, or a conversation"),
        (5, "line 2: text is 5; it must"),
        ([], r"line 2: text is \[\]; it must"),
        (["a"], "line 2: text has the message 'a'; it must"),
        ([{"role": "user"}], "line 2: text has the message {'role': 'user'}; it must"),
        ([{"role": "user", "content": None}], "line 2: text has the message .*; it must"),
    ],
)
def test_what_is_neither_is_refused_with_its_line(tmp_path, value, message):
    with pytest.raises(SubFitError, match=message) as caught:
        texts_of(write(tmp_path, [{"text": "a"}, {"text": value}]), with_template())
    assert "\n" not in str(caught.value)


def test_what_is_neither_is_refused_with_its_row_in_other_files_too(tmp_path):
    with pytest.raises(SubFitError, match="rows.parquet, row 2: text is None; it must"):
        texts_of(write(tmp_path, [{"text": "a"}, {"text": None}], "parquet"))
    with pytest.raises(SubFitError, match="rows.parquet, row 1: there is no column 'text'; there are body"):
        texts_of(write(tmp_path, [{"body": "a"}], "parquet"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n\n[1]\n')
    with pytest.raises(SubFitError, match=r"rows.jsonl, line 3 is \[1\]; it must be an object"):
        texts_of(str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(SubFitError, match="cannot read .*rows.jsonl, line 2: not JSON"):
        texts_of(str(tmp_path / "rows.jsonl"))


def test_rows_of_the_hub_are_named(tmp_path, monkeypatch):
    import datasets

    rows = datasets.load_dataset(
        "json", data_files=write(tmp_path, [{"text": "a"}, {"text": None}]), split="train", streaming=True
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(SubFitError, match=r"somebody/rows \(train\), row 2: text is None"):
        list(read_texts(Data(dataset="somebody/rows"), [], tiny_tokenizer(), 0, "hub"))


def test_the_mark_that_some_editors_begin_a_file_with_is_no_text(tmp_path):
    for name, content in (("a.txt", "text"), ("a.jsonl", '{"text": "text"}\n')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert "".join(texts_of(str(tmp_path / name))).strip() == "text"
