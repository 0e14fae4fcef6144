import json

import pytest

from subfit import registry
from subfit.errors import SubFitError
from subfit.registry import finding
from subfit.strategies.bypasses.low_rank import LowRank

PLUGIN = """
from subfit.bypass import Bypass
from torch import nn

class Doubled(Bypass):
    def __init__(self, times: int = 2):
        self.times = times

    def fit(self, branch, moments, shared):
        return nn.Identity()
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "doubled.py"
    path.write_text(PLUGIN)
    return path


def test_a_strategy_is_found_by_file_name_dotted_path_and_plugin_file(plugin):
    assert registry.find("bypasses", "low_rank") is LowRank
    assert registry.find("bypasses", "subfit.strategies.bypasses.low_rank.LowRank") is LowRank
    found = registry.find("bypasses", str(plugin))
    assert found.__name__ == "Doubled" and registry.find("bypasses", f"{plugin}:Doubled") is found
    assert registry.make("bypasses", {"class_path": str(plugin), "init_args": {"times": 3}}).times == 3


def test_every_short_name_leads_back_to_its_class(plugin):
    for kind in registry.INTERFACES:
        for name in registry.names(kind):
            assert registry.name_of(registry.find(kind, name)) == name
    path = registry.name_of(registry.find("bypasses", str(plugin)))
    assert registry.find("bypasses", path).__name__ == "Doubled"


def test_names_are_listed_without_importing():
    assert {"identity", "linear", "low_rank", "shared_low_rank"} <= set(registry.names("bypasses"))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("bypasses", "low_rnk", "unknown bypass 'low_rnk'; did you mean 'low_rank'\\? available: .*identity, .*linear"),
        ("scorers", "zzz", "unknown scorer 'zzz'; available: "),
        ("bypasses", "missing.py", "plug-in file missing.py does not exist"),
        ("bypasses", "torch.nn.Linear", "must define a Substitute Linear"),
        ("bypasses", "no_such_package.Thing", "cannot be imported: ModuleNotFoundError"),
        ("selectors", {"class_path": "greedy", "init_args": {"pool": 0.5}}, "pool is 0.5; both must be at least 1"),
        (
            "bypasses",
            {"class_path": "low_rank", "init_args": {"rang": 3}},
            "bypass low_rank: unknown option 'rang'; did you mean 'rank'",
        ),
    ],
)
def test_bad_names_are_one_clear_error(kind, given, message):
    with pytest.raises(SubFitError, match=message):
        registry.make(kind, given)


def test_a_plugin_file_that_fails_names_itself(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_like_this\n")
    with pytest.raises(SubFitError, match="broken.py' cannot be imported: ModuleNotFoundError: .*nothing_like_this"):
        registry.find("scorers", str(tmp_path / "broken.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(SubFitError, match="empty.py must define one Scorer; it defines none"):
        registry.find("scorers", str(tmp_path / "empty.py"))


def test_two_files_of_one_name_in_two_folders_are_two(tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "_plugins", [])
    for folder, times in (("one", 2), ("two", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "doubled.py").write_text(PLUGIN.replace("times: int = 2", f"times: int = {times}"))
    paths = [str(tmp_path / folder / "doubled.py") for folder in ("one", "two")]
    one, two = (registry.make("bypasses", path) for path in paths)
    assert (one.times, two.times) == (2, 5)
    for made, path in ((one, paths[0]), (two, paths[1])):
        assert registry.spec(made)["class_path"] == f"{path}:Doubled"
        assert type(registry.make("bypasses", registry.spec(made))) is type(made)
    for path in paths:
        registry.add_plugin(path)
    with pytest.raises(SubFitError, match="'doubled' is in .*one/doubled.py and in .*two/doubled.py; give the path"):
        registry.find("bypasses", "doubled")
    scorer = "from subfit.scorer import Scorer\nclass Mine(Scorer):\n    def score(self, calibration):\n        return {}\n"
    (tmp_path / "doubled.py").write_text(scorer)
    registry.add_plugin(str(tmp_path / "doubled.py"))  # of another kind: the name is clear
    assert registry.find("scorers", "doubled").__name__ == "Mine"


NEEDED = {
    "file": {"path": "scores.json"},
    "rank_fusion": {"scorers": ["rotation", {"class_path": "kl", "init_args": {"windows": 2}}]},
    "given": {"sites": ["ffn.1"]},
    "by_rule": {"rules": {"ffn.1?": "linear", "0-3": {"class_path": "low_rank", "init_args": {"rank": 2}}}},
}


@pytest.mark.parametrize("kind", registry.INTERFACES)
def test_spec_is_the_inverse_of_make(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.json").write_text('{"ffn.0": 1.0}')
    for name in registry.names(kind):
        made = registry.make(kind, {"class_path": name, "init_args": NEEDED.get(name, {})})
        written = registry.spec(made)
        assert written["class_path"] == name and set(written["init_args"]) == set(made.arguments())
        again = registry.make(kind, json.loads(json.dumps(written)))
        assert type(again) is type(made) and registry.spec(again) == written


def test_a_strategy_that_fails_as_it_is_made_says_where(tmp_path):
    (tmp_path / "odd.py").write_text(PLUGIN.replace("self.times = times", "self.times = 1 / times"))
    with pytest.raises(SubFitError, match=r"bypass .*odd.py: ZeroDivisionError: division by zero \(.*odd.py:\d+\)"):
        registry.make("bypasses", {"class_path": str(tmp_path / "odd.py"), "init_args": {"times": 0}})


def test_annotations_that_name_nothing_say_so(tmp_path):
    text = "from __future__ import annotations\n" + PLUGIN.replace("times: int", "times: Numbr")
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(SubFitError, match="its annotations name 'Numbr', which is not there"):
        registry.make("bypasses", str(tmp_path / "odd.py"))
