import json
from functools import partial
from pathlib import Path

import pytest
import yaml

from subfit.ablation.grid import read_grid
from subfit.errors import SubFitError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
GRIDS = sorted(path for name in ("ablations", "benchmarks") for path in (EXPERIMENTS / name).glob("*.yaml"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Paths in a grid are relative to the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)


def write(tmp_path, name="grid.yaml", **content):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def test_axes_are_combined_and_lists_of_zip_go_together(tmp_path):
    axes = {"sparsity": [0.25, 0.5], "scorer": ["rotation", "magnitude"]}
    grid = read_grid(write(tmp_path, axes=axes, zip={"seed": [1, 2], "calibration.windows": [8, 16]}))
    assert [list(cell.values.values()) for cell in grid.cells] == [
        [seed, windows, sparsity, scorer]
        for seed, windows in ((1, 8), (2, 16))
        for sparsity in (0.25, 0.5)
        for scorer in ("rotation", "magnitude")
    ]
    cell = grid.cells[-1].configuration
    assert (cell["seed"], cell["calibration"]["windows"], cell["calibration"]["length"]) == (2, 16, 512)
    assert (cell["sparsity"], cell["scorer"]["class_path"], cell["selector"]["class_path"]) == (0.5, "magnitude", "per_type")


def test_presets_labels_arguments_of_strategies_and_exclusions(tmp_path):
    write(tmp_path, "base.yaml", scorer={"class_path": "subfit", "init_args": {"quantile": 0.5}}, sparsity=0.5)
    write(tmp_path, "preset.yaml", scorer="rotation", fitting="sequential")
    grid = read_grid(
        write(
            tmp_path,
            base="base.yaml",
            options={"seed": 3},
            axes={
                "preset": {"ours": {}, "theirs": {"config": "preset.yaml", "correction": 0.5}},
                "attention_bypass.init_args.rank": [4, 8],
            },
            exclude=[{"preset": "theirs", "attention_bypass.init_args.rank": 4}],
            cells=[{"config": "preset.yaml", "sparsity": 0.25}],
            texts={"story": {"path": "story.txt"}},
        )
    )
    values = [tuple(cell.values.values()) for cell in grid.cells]
    assert values == [("ours", 4), ("ours", 8), ("theirs", 8), ("preset.yaml", 0.25)]
    ours, _, theirs, alone = (cell.configuration for cell in grid.cells)
    assert ours["scorer"]["init_args"] == {"quantile": 0.5} and theirs["scorer"]["class_path"] == "rotation"
    assert ours["attention_bypass"]["init_args"]["rank"] == 4 and theirs["attention_bypass"]["init_args"]["rank"] == 8
    assert (theirs["correction"], theirs["sparsity"], alone["sparsity"], alone["fitting"]) == (0.5, 0.5, 0.25, "sequential")
    assert all(cell.configuration["seed"] == 3 for cell in grid.cells) and grid.texts["story"].path == ["story.txt"]


def test_a_cells_name_depends_on_its_configuration_alone(tmp_path):
    one = read_grid(write(tmp_path, axes={"sparsity": [0.25, 0.5]}))
    two = read_grid(write(tmp_path, axes={"share": {"half": {"sparsity": 0.5}, "quarter": {}}}))
    assert [cell.name for cell in one.cells] == [cell.name for cell in reversed(two.cells)]


def test_a_row_of_before_an_option_was_there_still_counts_and_one_of_other_options_does_not(tmp_path):
    (cell, _) = read_grid(write(tmp_path, axes={"sparsity": [0.5, 0.25]})).cells
    row = {"cell": cell.name, "status": "done", "configuration": dict(cell.configuration), "depends_on": {"model": "x"}}
    done = partial(cell.is_done, depends_on={"model": "x"})
    assert done(row) and not done(None) and not done({**row, "status": "failed"})
    assert not done({**row, "configuration": {**cell.configuration, "correction": 0.9}})
    assert not done({**row, "depends_on": {"model": "y"}}) and not done({k: v for k, v in row.items() if k != "depends_on"})
    del row["configuration"]["budget"]
    assert done(row)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no cells"),
        ({"axis": {}}, "unknown key 'axis'; a grid has base, "),
        ({"base": "nowhere.yaml", "axes": {"seed": [1]}}, "nowhere.yaml does not exist"),
        ({"axes": {"sparsity": []}}, "axis 'sparsity' must be a list of values, and not empty"),
        ({"axes": {"sparsity": 0.5}}, "axis 'sparsity' must be a list of values"),
        (
            {"axes": {"sparsty": [0.5]}},
            "axis 'sparsty' must be a mapping of labels to options",
        ),
        ({"axes": {"calibration.windws": [8]}}, r'cell {"calibration.windws": 8}: .*windws'),
        ({"axes": {"sparsity": ["much"]}}, r'cell {"sparsity": "much"}: .*sparsity'),
        ({"axes": {"sparsity": [1.5]}}, "sparsity is 1.5"),
        ({"axes": {"scorer": ["rotatoin"]}}, "unknown scorer 'rotatoin'.*rotation"),
        ({"axes": {"sparsity": [0.5, 0.25, 0.5]}}, "two cells are the same"),
        ({"axes": {"sparsity": [0.5]}, "cells": [{"sparsity": 0.5}]}, "two cells are the same"),
        ({"zip": {"seed": [1, 2], "sparsity": [0.5]}}, "one length; seed has 2, sparsity has 1"),
        ({"axes": {"seed": [1]}, "exclude": [{"seed": 1}]}, "every cell is excluded"),
        ({"axes": {"seed": [1]}, "exclude": [{"sead": 1}]}, "exclude names 'sead', which is no axis"),
        ({"axes": {"seed": [1, 2]}, "exclude": [{"seed": 3}]}, "exclude: no cell has the value 3 of seed"),
        ({"axes": {"seed": [1]}, "options": [1]}, r"options is \[1\]; it must be a mapping"),
        ({"axes": {"seed": [1]}, "options": {"resume": "x.ckpt"}}, "a cell has no output folder, and no run to resume"),
        ({"axes": {"seed": [1]}, "tasks": ["a.jsonl", "b/a.jsonl"]}, "two tasks are called 'a'"),
        ({"axes": {"seed": [1]}, "tasks": ["a.jsonl"], "limit": True}, "limit is True"),
        ({"axes": {"seed": [1]}, "tasks": ["a.jsonl"], "limit": 1, "items": 2}, "unknown key 'items'"),
        ({"axes": {"seed": [1]}, "texts": {"story": {"path": "x.txt", "windows": 0}}}, "texts: story has 0 windows"),
        ({"cells": [{"nonsense": 1}]}, "unknown option 'nonsense'"),
        ({"cells": ["subfit"]}, "cells must be a list of mappings"),
        ({"cells": [{"output": "x"}]}, "output"),
        ({"cells": [{"fsdp": True}]}, "processes that work together; those of an ablation do not"),
        (
            {"axes": {"seed": [1]}, "texts": {"story": {"pth": "x"}}},
            "texts: story: unknown option 'pth'; did you mean 'path'?",
        ),
        (
            {"axes": {"seed": [1]}, "texts": {"story": {"windows": "many"}}},
            "texts: story.windows is 'many'; it must be a whole",
        ),
        ({"axes": {"seed": [1]}, "texts": ["story.txt"]}, "texts must map names"),
    ],
)
def test_a_bad_grid_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(SubFitError, match=message) as caught:
        read_grid(write(tmp_path, **content))
    assert "\n" not in str(caught.value)


def test_the_record_of_a_run_is_a_base(tmp_path):
    """As it is a `--config`; and a name that is misspelt has the same hint."""
    record = {"format_version": 2, "configuration": {"sparsity": 0.5}, "selected": []}
    (tmp_path / "compression.json").write_text(json.dumps(record))
    (cell,) = read_grid(write(tmp_path, base="compression.json", axes={"seed": [1]})).cells
    assert cell.options.recipe.sparsity == 0.5
    with pytest.raises(SubFitError, match="no file 'bset'; did you mean 'best'?"):
        read_grid(write(tmp_path, base="bset", axes={"seed": [1]}))


def test_items_of_older_grids_is_the_limit(tmp_path):
    for key in ("items", "limit"):
        assert read_grid(write(tmp_path, axes={"seed": [1]}, tasks=["a.jsonl"], **{key: 8})).limit == 8


def test_an_option_of_a_group_that_is_at_its_default_does_not_change_a_cells_name(tmp_path):
    one = read_grid(write(tmp_path, axes={"calibration.windows": [8]})).cells[0]
    two = read_grid(write(tmp_path, cells=[{"calibration.windows": 8, "calibration.sampling": "first"}])).cells[0]
    assert one.name == two.name


def test_a_file_that_is_no_mapping(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(json.dumps([1]))
    with pytest.raises(SubFitError, match="must be a mapping"):
        read_grid(str(path))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_grids_that_come_with_the_project(path):
    assert len(read_grid(str(path)).cells) > 1
