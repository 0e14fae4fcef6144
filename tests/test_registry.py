import pytest

from subfit import registry
from subfit.errors import SubFitError
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
            assert registry.short_name(registry.class_path(kind, name)) == name
    path = registry.short_name(registry.class_path("bypasses", str(plugin)))
    assert registry.find("bypasses", path).__name__ == "Doubled"


def test_names_are_listed_without_importing():
    assert {"identity", "linear", "low_rank", "shared_low_rank"} <= set(registry.names("bypasses"))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("bypasses", "low_rnk", "unknown bypass 'low_rnk'; did you mean 'low_rank'\\? available: .*identity, linear"),
        ("scorers", "zzz", "unknown scorer 'zzz'; available: "),
        ("bypasses", "missing.py", "plug-in file missing.py does not exist"),
        ("bypasses", "torch.nn.Linear", "must define a Bypass Linear"),
        ("bypasses", "no_such_package.Thing", "cannot be imported: ModuleNotFoundError"),
        ("selectors", {"class_path": "greedy", "init_args": {"pool": 0.5}}, "pool is 0.5; both must be at least 1"),
        ("bypasses", {"class_path": "low_rank", "init_args": {"rang": 3}}, "low_rank: .*'rang'; it takes \\(rank"),
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
