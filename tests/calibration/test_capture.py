import pytest
import torch
from conftest import FAMILIES, tiny_model, tiny_tokens

from subfit.calibration.capture import Calibration


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_site_is_shown_the_stream_before_it_and_what_it_adds(family):
    model, tokens = tiny_model(family), tiny_tokens(5)
    states = model(tokens, output_hidden_states=True).hidden_states
    calibration = Calibration(model, tokens, batch_size=2)
    shown = {site: [] for site in calibration.sites}
    ended = []

    def visit(site, seen):
        shown[site].append((seen.h.clone(), seen.x.clone(), seen.y.clone()))

    calibration.watch_sites(calibration.sites, "test", visit, ended.append)
    assert ended == calibration.sites
    for attention, ffn in zip(calibration.sites[::2], calibration.sites[1::2], strict=True):
        (h, _, y), (_, x, z) = ([torch.cat(parts) for parts in zip(*shown[site], strict=True)] for site in (attention, ffn))
        torch.testing.assert_close(h, states[attention.layer])
        if attention.layer < 3:  # the last state that the model reports is behind its final norm
            torch.testing.assert_close(h + y + z, states[attention.layer + 1])
        core = model.get_submodule(ffn.path)
        if ffn.output_norm is None:
            torch.testing.assert_close(core(x), z)


@torch.no_grad()
def test_layers_behind_the_last_watched_site_are_not_run():
    model = tiny_model()
    calibration = Calibration(model, tiny_tokens(2))
    model.model.layers[2].register_forward_pre_hook(lambda *_: pytest.fail("layer 2 was run"))
    calibration.watch_sites(calibration.sites[:4], "test", lambda *_: None)
