import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from subfit.ablation.measures import label, pareto_front
from subfit.ablation.report import report
from subfit.ablation.rows import Rows
from subfit.errors import SubFitError


def row(index, *, kept=50, ratio=1.5, scorer="rotation", status="done", **values):
    names = [f"{kind}.{layer}" for layer in range(4) for kind in ("attention", "ffn")]
    return {
        "cell": str(index),
        "values": {"scorer": scorer, **values},
        "status": status,
        "error": "SubFitError: <too little data>" if status == "failed" else None,
        "texts": {"evaluation": {"perplexity_ratio": ratio, "agreement": 0.5, "kl": 0.25}},
        "scores": {name: float(place) for place, name in enumerate(names)},
        "selected": names[:2],
        "size": {
            "before": {"parameters": 100, "kv_bytes_per_token": 8},
            "after": {"parameters": kept, "kv_bytes_per_token": 4},
            "added_parameters": 3,
        },
        "seconds": {"score": 1.0, "select": 0.5, "fit": 2.0, "evaluate": 9.0},
        "configuration": {"scorer": {"class_path": scorer}, "sparsity": values.get("sparsity", 0.25)},
    }


def write(folder, rows):
    table = Rows(folder, "grid")
    for one in rows:
        table.append(one)
    return str(folder)


def test_the_page_holds_every_cell_its_pictures_and_the_front(tmp_path):
    rows = [
        row(0, kept=80, ratio=1.2, sparsity=0.25),
        row(1, kept=60, ratio=1.9, sparsity=0.5) | {"finetune": {"curve": [{"step": i, "ratio": 2.0 - i} for i in (0, 1)]}},
        row(2, kept=80, ratio=1.3, sparsity=0.25, scorer="magnitude"),
        row(3, kept=55, ratio=1.8, sparsity=0.5, scorer="magnitude"),
        row(4, status="failed", sparsity=0.5, scorer="<script>"),
    ]
    path = report([write(tmp_path / "runs", rows)], str(tmp_path / "page"))
    text = path.read_text()
    assert "<script>" not in text.replace("<script>\n", "", 1) and "&lt;too little data&gt;" in text
    assert not re.search(r"(src|href)=\"(?!#|data:)", text)  # self-contained
    assert text.count('<tr class="front">') == 2 and text.count("<svg") == 5
    for name in re.findall(r'<figure id="(.*?)">', text):
        ElementTree.parse(path.with_name(f"{name}.svg"))
        assert path.with_name(f"{name}.png").stat().st_size > 1000
    table = path.with_name("table.md").read_text().splitlines()
    assert table[0] == (
        "| scorer | sparsity | perplexity ratio, evaluation ↓ | same next token ↑ | KL divergence, nats ↓ "
        "| parameters removed, net ↑ | parameters added | KV cache left ↓ | time to compress, s ↓ |"
    )
    assert table[2] == "| rotation | 0.25 | 1.20 | 50% | 0.25 | 20 | 3 | 50% | 4 |" and len(table) == 6
    configurations = [yaml.safe_load(part) for part in re.findall(r"<pre.*?>(.*?)</pre>", text, re.S)]
    assert configurations == [rows[0]["configuration"], rows[3]["configuration"]]


def test_many_folders_are_told_apart_and_one_cell_is_enough(tmp_path):
    one, two = write(tmp_path / "one", [row(0)]), write(tmp_path / "two", [row(0, ratio=1.4)])
    text = report([one, two], str(tmp_path)).read_text()
    assert "study" in text and "one, two" in text
    assert report([one], one).exists()
    assert "seeds" not in report([one, one + "/"], one).with_name("table.md").read_text()  # no replicates of themselves
    same = write(tmp_path / "deeper" / "one", [row(0, ratio=1.3)])
    assert f"| {same} |" in report([one, same], one).with_name("table.md").read_text()


@pytest.mark.parametrize("lost", [float("inf"), float("nan")])
def test_a_lost_model_is_in_the_table_but_not_in_the_pictures(tmp_path, lost):
    interval = {"perplexity_ratio_interval": [2.0, lost]}
    rows = [row(0, scorer="a", ratio=lost), row(1, scorer="b"), row(2, scorer="c", ratio=3.0)]
    rows[0]["texts"]["evaluation"] |= interval
    page = report([write(tmp_path / "runs", rows)], str(tmp_path / "page"))
    assert f"| a | {lost} [" in page.with_name("table.md").read_text().replace(f"{lost:.2f}", str(lost))
    assert page.read_text().count('<tr class="front">') == 1 and page.with_name("effects.png").exists()
    assert report([write(tmp_path / "all", rows[:1])], str(tmp_path / "none")).exists()


def test_nothing_to_report_is_one_line(tmp_path):
    with pytest.raises(SubFitError, match="no finished cell"):
        report([str(tmp_path)], str(tmp_path / "page"))
    with pytest.raises(SubFitError, match="the folder .*gone does not exist"):
        report([str(tmp_path / "gone")], str(tmp_path / "page"))
    with pytest.raises(SubFitError, match="no finished cell"):
        report([write(tmp_path / "failed", [row(0, status="failed")])], str(tmp_path / "page"))


def test_the_front_is_that_of_a_naive_search():
    points = [tuple(point) for point in np.random.default_rng(0).integers(0, 12, (60, 2)).tolist()]
    front = {points[index] for index in pareto_front(points)}
    better = {p for p in points if any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)}
    assert front == set(points) - better


def test_labels():
    spec = {"class_path": "kl", "init_args": {"bypass": {"class_path": "linear"}, "windows": 8}}
    assert label(spec) == "kl(bypass=linear, windows=8)" and label([spec, "x"]) == "[kl(bypass=linear, windows=8), x]"
    assert label(0.25) == "0.25" and json.loads(label({"a": 1})) == {"a": 1}
