"""What was computed with other seeds, files, models or versions is not taken for what is asked for."""

import json
import shutil

import pytest
import transformers
import yaml
from conftest import tiny_model, tiny_tokens

from subfit import registry
from subfit.ablation.dependencies import calibration_digest, dependencies, scores_name
from subfit.ablation.plugin_files import files_of
from subfit.ablation.report import report
from subfit.ablation.runner import ablate
from subfit.config import resolve
from subfit.model.dtypes import native
from subfit.model.loading import device_of
from subfit.tracking.provenance import code_commit

SCORER = """
from random import Random

from {helper} import spread
from subfit.scorer import Scorer


class Drawn(Scorer):
    def __init__(self, seed: int | None = None, inner: Scorer | None = None):
        self.seed = seed

    def score(self, calibration):
        generator = Random(self.seed)
        return {{site: spread * generator.random() for site in calibration.sites}}
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch, request):
    """A plug-in file that imports another one of its folder."""
    helper = f"spread_{request.node.name.partition('[')[0]}"[:60]
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / f"{helper}.py").write_text("spread = 1.0\n")
    (folder / "drawn.py").write_text(SCORER.format(helper=helper))
    monkeypatch.syspath_prepend(folder)
    return folder / "drawn.py", folder / f"{helper}.py"


@pytest.fixture
def run(tmp_path, model_folder, text_file):
    """Runs a grid on the tiny model in one folder; returns its rows and how many cells were run."""

    def ablation(options, output="out", **content):
        data = {"path": str(text_file), "windows": 6, "length": 32}
        options = {"model": str(model_folder), "sparsity": 0.5, "calibration": data, "evaluation": {"windows": 2}, **options}
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"options": options, **content}))
        ran = []

        def report_(cell, status, row):
            if status == "running":
                ran.append(cell.name)

        rows = ablate(str(tmp_path / "grid.yaml"), str(tmp_path / output), report=report_, allow_code=True)
        return rows, len(ran)

    return ablation


def test_an_ablation_over_seeds_has_different_rows(run, plugin):
    """The seed draws the windows of the text, and reaches a scorer that has none of its own."""
    options = {"scorer": str(plugin[0]), "calibration.sampling": "random"}
    rows, _ = run(options, axes={"seed": [0, 1, 2]})
    assert [row["status"] for row in rows] == ["done"] * 3
    for key in ("calibration_tokens", "evaluation_tokens", "scores"):
        assert len({json.dumps(row[key]) for row in rows}) == 3, key
    own = {"scorer": {"class_path": str(plugin[0]), "init_args": {"seed": 5}}}
    (first, second), _ = run(own, "own", axes={"seed": [0, 1]})
    assert first["scores"] == second["scores"]


def test_no_text_is_sampled_by_the_seed_of_the_calibration_or_of_another_text(run):
    size = {"source": "self", "windows": 2, "length": 16}
    options = {"calibration": size, "evaluation": {"windows": 2, "length": 16, "source": "self"}, "scorer": "rotation"}
    rows, _ = run(options, axes={"seed": [0, 1]}, texts={"one": size, "two": size})
    tokens = [row[key] for row in rows for key in ("calibration_tokens", "evaluation_tokens")]
    tokens += [found for row in rows for found in row["text_tokens"].values()]
    assert len({found["sha256"] for found in tokens}) == 8 and all(found["shape"] == [2, 16] for found in tokens)


def test_a_row_says_what_made_it(run):
    (row,), _ = run({}, cells=[{"scorer": "rotation"}])
    assert row["format_version"] == 2 and row["versions"]["transformers"] == transformers.__version__
    assert row["commit"] == code_commit()
    depends_on = row["depends_on"]
    assert depends_on.pop("native_dtypes") == native(device_of("auto"))
    assert depends_on.keys() == {"torch", "transformers", "model", "strategies", "data"} and all(depends_on.values())


@pytest.mark.parametrize("changed", ["nothing", "nested plug-in", "its helper", "model", "text", "transformers"])
def test_a_row_counts_as_long_as_what_it_depends_on_is_the_same(
    run, plugin, tmp_path, model_folder, monkeypatch, caplog, changed
):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "text.txt").write_text("".join(f"{i} and {i * i}. " for i in range(500)))
    inner = shutil.copy(plugin[0], plugin[0].with_name("inner.py"))
    nested = {"class_path": str(plugin[0]), "init_args": {"inner": {"class_path": str(inner)}}}
    options = {"model": str(tmp_path / "model"), "scorer": nested}
    options["calibration"] = {"path": str(tmp_path / "text.txt"), "windows": 6, "length": 32}
    assert run(options, axes={"sparsity": [0.5]})[1] == 1
    config = tmp_path / "model" / "config.json"
    if changed == "model":
        config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-5}))
    elif changed == "transformers":
        monkeypatch.setattr(transformers, "__version__", "6.0.0")
    elif changed != "nothing":
        path = {"nested plug-in": inner, "its helper": plugin[1], "text": tmp_path / "text.txt"}[changed]
        path.write_text(path.read_text() + "\n")  # not what it does, which this process has imported
    expected = {"nothing": None, "nested plug-in": "strategies", "its helper": "strategies", "text": "data"}.get(
        changed, changed
    )
    assert run(options, axes={"sparsity": [0.5]})[1] == (expected is not None)
    messages = [record.message for record in caplog.records if record.name.startswith("subfit")]
    assert messages == ([f"1 finished cells are run again (changed since: {expected})"] if expected else [])


def test_a_row_of_format_1_is_reported_and_does_not_count(run, tmp_path, caplog):
    run({}, cells=[{"scorer": "rotation"}])
    path = tmp_path / "out" / "rows.jsonl"
    row = json.loads(path.read_text())
    for key in (
        "format_version",
        "versions",
        "commit",
        "depends_on",
        "calibration_tokens",
        "evaluation_tokens",
        "text_tokens",
    ):
        del row[key]
    path.write_text(json.dumps(row) + "\n")
    assert report([str(tmp_path / "out")], str(tmp_path / "page")).exists()
    assert run({}, cells=[{"scorer": "rotation"}])[1] == 1
    assert "1 finished cells are run again (an older subfit did not write what they depend on)" in caplog.messages


def test_cached_scores_are_those_of_a_seed_of_a_file_and_of_a_models_configuration(plugin, monkeypatch):
    def named(**arguments):
        return scores_name(registry.make("scorers", {"class_path": str(plugin[0]), "init_args": arguments}))

    names = [named(), named(seed=1), named(seed=2), named(inner="rotation")]
    plugin[1].write_text("spread = 2.0\n")
    assert len({*names, named()}) == 5
    model, tokens = tiny_model(), tiny_tokens()
    digests = [calibration_digest(model, tokens, 4), calibration_digest(model, tokens, 8)]
    assert digests[0] == calibration_digest(tiny_model(), tiny_tokens(), 4)
    model.config.rms_norm_eps = 1e-5
    digests.append(calibration_digest(model, tokens, 4))
    monkeypatch.setattr(transformers, "__version__", "6.0.0")
    digests.append(calibration_digest(model, tokens, 4))
    assert len(set(digests)) == 4


def test_the_files_of_a_strategy(plugin, tmp_path):
    scores = tmp_path / "scores.json"
    scores.write_text("{}")
    inner = {"class_path": "file", "init_args": {"path": str(scores)}}
    made = registry.make("scorers", {"class_path": str(plugin[0]), "init_args": {"inner": inner}})
    assert {path.name for path in files_of(made)} == {"drawn.py", plugin[1].name, "file.py", "scores.json"}
    assert {path.name for path in files_of(registry.make("bypasses", "shared_low_rank"))} >= {"shared_low_rank.py"}


def test_a_row_depends_on_the_files_that_globs_and_folders_stand_for(tmp_path):
    for path in (str(tmp_path), f"{tmp_path}/*.txt"):
        found = []
        for name in ("a.txt", "b.txt", "c.csv"):
            (tmp_path / name).write_text(name)
            found.append(dependencies(resolve({"model": None, "calibration": {"path": path}}), [], [])["data"])
        assert found[0] != found[1] == found[2]
        (tmp_path / "b.txt").unlink()
