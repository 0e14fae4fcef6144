"""How large a site's weights are, as its inputs weigh them."""

from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from subfit.calibration.capture import Calibration
from subfit.errors import SubFitError
from subfit.model.processes import all_reduce_sum, full_tensor
from subfit.model.submodules import Site, first_tensor
from subfit.scorer import Scorer, Scores


class WeightActivation(Scorer):
    """Median of a site's weights, each by the size of its input, so that outliers do not decide (DLP, arXiv 2505.23807).

        score = median over all weights of the site's linear layers of  |W_ij| * |X_j| / sqrt(n)

    X_j is the j-th input feature of the layer over the n calibration tokens; |X_j| its Euclidean norm. All weights of one
    site are held a second time.

    We depart from DLP in two ways. It takes one median for each decoder layer; and it sets more of a layer's weights to zero
    the higher the median is, where single weights stand out less. Here all weights of a site go: the lower their median,
    the less is lost.

    Raises:
        SubFitError: if a site has matrices that are not those of linear layers, such as experts.
    """

    def score(self, calibration: Calibration) -> Scores:
        squares: dict[nn.Module, Tensor] = {}  # the sum over tokens, for each input feature
        scores = {}
        layers = {site: _linear_layers(calibration.model, site) for site in calibration.sites}

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = first_tensor(args, kwargs).flatten(0, -2).float()
            squares[module] = squares.get(module, 0) + x.square().sum(0, dtype=torch.float64)

        def done(site: Site) -> None:
            weighed = []
            for layer in layers[site]:
                weight = full_tensor(layer.weight)
                weight = weight if isinstance(layer, nn.Linear) else weight.T
                size = (all_reduce_sum(squares.pop(layer)) / calibration.tokens.numel()).sqrt()
                weighed.append((weight.float().abs() * size.float()).flatten())
            scores[site] = float(torch.cat(weighed).median())

        with ExitStack() as stack:
            for layer in chain(*layers.values()):
                stack.callback(layer.register_forward_pre_hook(see, with_kwargs=True).remove)
            calibration.watch_sites(calibration.sites, "scoring", lambda site, seen: None, done)
        return scores


def _linear_layers(model: nn.Module, site: Site) -> list[Any]:
    """The linear layers of a site, which must hold all of its matrices."""
    core = model.get_submodule(site.path)
    layers = [module for module in core.modules() if isinstance(module, nn.Linear | Conv1D)]
    if len(layers) != sum(p.ndim > 1 for p in core.parameters()):
        raise SubFitError(f"weight_activation: {site.name} has matrices outside linear layers; use another scorer")
    return layers
