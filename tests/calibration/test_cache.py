import pytest
import torch
from conftest import recipe, tiny_model, tiny_tokens

from subfit.calibration.cache import Cache
from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.fitting import one_shot
from subfit.fitting.statistics import gather
from subfit.registry import make

TENSORS = {
    "a": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
    "b": torch.tensor(1.5).bfloat16(),
    "c": torch.empty(0),
}


def test_what_is_put_is_what_is_found(tmp_path):
    cache = Cache(tmp_path / "new")
    assert cache.get("x") is None
    cache.put("x", TENSORS)
    found = cache.load("x")
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "empty"])
def test_a_damaged_file_is_not_used(tmp_path, damage):
    cache = Cache(tmp_path)
    cache.put("x", TENSORS)
    path = tmp_path / "x.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"flipped bit": bytes(content), "cut": content[:-5], "empty": b""}[damage])
    assert cache.get("x") is None
    with pytest.raises(SubFitError, match="x.*removed or damaged"):
        cache.load("x")


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SubFitError, match="cannot keep intermediate results"):
        Cache(tmp_path / "file" / "folder").put("x", TENSORS)


@pytest.mark.parametrize("reads", ["input", "stream"])
def test_moments_of_all_sites_are_gathered_once(tmp_path, monkeypatch, reads):
    model, tokens = tiny_model(), tiny_tokens()
    plain, cached = Calibration(model, tokens), Calibration(model, tokens, cache=Cache(tmp_path))
    passes = []
    watch = Calibration.watch_sites

    def counted(self, sites, *rest):
        passes.append(len(sites))
        watch(self, sites, *rest)

    monkeypatch.setattr(Calibration, "watch_sites", counted)
    bypass = make("bypasses", {"class_path": "linear", "init_args": {"reads": reads}})

    def gathered(calibration, sites):
        found = {}
        gather(calibration, dict.fromkeys(sites, bypass), found.__setitem__)
        return found

    first, second = plain.sites[1:3], plain.sites[2:6]
    for sites in (first, second):
        expected, found = gathered(plain, sites), gathered(cached, sites)
        assert expected.keys() == found.keys() == set(sites)
        for site in sites:
            assert all(torch.equal(value, getattr(found[site], name)) for name, value in vars(expected[site]).items())
    assert [n for n in passes if n] == [2, 8, 4]  # plain, all eight sites once for both, plain


def test_fits_from_a_cache_are_those_from_a_pass(tmp_path):
    made = recipe(ffn_bypass="mlp", sparsity=0.5)
    model, tokens = tiny_model(), tiny_tokens()
    weights = []
    for cache in (None, Cache(tmp_path), Cache(tmp_path)):
        calibration = Calibration(model, tokens, cache=cache)
        plan = {s: made.attention_bypass if s.kind == "attention" else made.ffn_bypass for s in calibration.sites[2:6]}
        weights.append([p.clone() for r in one_shot.fit_one_shot(calibration, plan) for p in r.bypass.parameters()])
    for found in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], found, strict=True))
