import json

import pytest

from subfit.errors import SubFitError
from subfit.evaluation.tasks import Item, joined, read_task

CHOICE = {"query": "One and one is", "choices": ["two.", "three."], "gold": 0, "more": "is ignored"}
SCHEMA = {
    "context_options": ["The cup fell since the cup", "The cup fell since the shelf"],
    "continuation": "broke.",
    "gold": 1,
}
GREEDY = {"context": "Hello,", "continuation": "world"}


def task_file(tmp_path, *lines):
    path = tmp_path / "toy.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_the_three_layouts(tmp_path):
    task = read_task(task_file(tmp_path, CHOICE, "", SCHEMA))
    assert task.name == "toy"
    assert task.items == [
        Item((("One and one is", "two."), ("One and one is", "three.")), 0),
        Item((("The cup fell since the cup", "broke."), ("The cup fell since the shelf", "broke.")), 1),
    ]
    assert read_task(task_file(tmp_path, GREEDY)).items == [Item((("Hello,", "world"),), None)]


def test_the_first_items_alone_are_read(tmp_path):
    assert len(read_task(task_file(tmp_path, CHOICE, CHOICE, "broken"), 2).items) == 2


@pytest.mark.parametrize(("context", "expected"), [("a", " b"), ("a:", " b"), ("a ", "b"), ("a\n", "b")])
def test_one_space_joins_what_white_space_does_not(context, expected):
    assert joined(context, "b") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"toy.jsonl:2: not JSON: .* \(column 2\)"),
        ("[1]", r"toy.jsonl:2: unknown layout; .*: choices, query, gold; context_options, .*; context, continuation$"),
        ({"question": "?"}, "toy.jsonl:2: unknown layout"),
        (
            {"query": "q", "choices": ["a", "b"]},
            "toy.jsonl:2: 'gold' is missing; an item with 'choices' needs choices, query,",
        ),
        ({"context": "c"}, "toy.jsonl:2: 'continuation' is missing"),
        (CHOICE | {"gold": 2}, "toy.jsonl:2: gold is 2; it must be an index from 0 to 1"),
        (CHOICE | {"gold": -1}, "gold is -1"),
        (CHOICE | {"gold": "0"}, "gold is '0'"),
        (CHOICE | {"gold": True}, "gold is True"),
        (CHOICE | {"choices": ["a"]}, "'choices' must be a list of at least two texts"),
        (CHOICE | {"choices": ["a", ""]}, "'choices' must be a list of at least two texts, none of them blank"),
        (CHOICE | {"query": " "}, "'query' must be a text, and not blank"),
        (SCHEMA | {"continuation": 3}, "'continuation' must be a text"),
        (GREEDY, "toy.jsonl:2: another kind of item than the first"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(SubFitError, match=message):
        read_task(task_file(tmp_path, CHOICE, line))


def test_files_that_are_no_task(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9\n")
    for path, message in (
        (task_file(tmp_path, ""), "has no items"),
        (str(tmp_path / "missing.jsonl"), "task file .*missing.jsonl does not exist"),
        (str(tmp_path / "latin.jsonl"), "cannot read the task file .*latin.jsonl: .*utf-8"),
    ):
        with pytest.raises(SubFitError, match=message):
            read_task(path)
