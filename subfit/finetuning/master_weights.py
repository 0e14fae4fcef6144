"""Float32 master weights of the trained parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from subfit.model.dtypes import rounded


class MasterWeights(nn.ParameterList):
    """Float32 master weights of some modules, which use them, rounded, during training.

    Updates smaller than the resolution of bfloat16 are not lost, and the model computes with the rounded weights that it
    will be saved with. A parameter that several modules share has one copy.

    Args:
        modules: the modules; those that they have in common count once.
        saved: the type that the model is saved in, if it computes in a wider one.
    """

    def __init__(self, modules: Iterable[nn.Module], saved: torch.dtype | None = None):
        super().__init__()
        self._saved = saved
        self._uses: list[list[tuple[nn.Module, str]]] = []
        self._own: list[nn.Parameter] = []
        found: dict[int, int] = {}
        inner = dict.fromkeys(part for module in modules for part in module.modules())
        for module in inner:
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in found:
                    found[id(parameter)] = len(self._own)
                    self._own.append(parameter)
                    self._uses.append([])
                    wide = torch.promote_types(parameter.dtype, torch.float32)
                    self.append(nn.Parameter(parameter.detach().to(wide, copy=True)))
                if parameter is not None:
                    self._uses[found[id(parameter)]].append((module, name))

    def use(self) -> None:
        """Gives the modules the weights as they are now, rounded to what they are saved in; gradients flow back."""
        for master, own, uses in zip(self, self._own, self._uses, strict=True):
            used = rounded(master, self._saved).to(own.dtype)
            for module, name in uses:
                module._parameters.pop(name, None)
                setattr(module, name, used)

    def values(self) -> list[Tensor]:
        """Returns copies of the weights."""
        return [master.detach().clone() for master in self]

    def restore(self, values: list[Tensor]) -> None:
        """Gives the modules their own parameters back, with these values."""
        for own, uses, value in zip(self._own, self._uses, values, strict=True):
            own.data.copy_(rounded(value, self._saved))
            for module, name in uses:
                vars(module).pop(name, None)
                module._parameters[name] = own
