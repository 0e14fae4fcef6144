"""Low-rank adapters of kept layers, trained beside the bypasses and merged into the weights afterwards."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from subfit.errors import SubFitError
from subfit.finetuning.settings import LoRA
from subfit.model.folding import linear_like
from subfit.model.processes import full_tensor
from subfit.model.replacing import Switch
from subfit.model.submodules import decoder_layers


def check_layers(model: nn.Module, settings: LoRA) -> None:
    """Raises SubFitError if a model has fewer layers than are to have adapters."""
    found = len(decoder_layers(model)[1])
    if settings.layers > found:
        raise SubFitError(f"finetune.lora: layers is {settings.layers}; the model has {found}")


class Adapters(Switch):
    """The adapters of a model, which can be switched off and on; its own weights stay as they are.

    Args:
        model: the model, with its replacements on.
        settings: where, and of what rank.
        fitted: modules that have no adapters, as they are trained themselves.

    Raises:
        SubFitError: if the model has fewer layers, or no linear map is kept in the last ones.
    """

    def __init__(self, model: nn.Module, settings: LoRA, fitted: Iterable[nn.Module]):
        from peft import LoraConfig, inject_adapter_in_model

        root, layers = decoder_layers(model)
        check_layers(model, settings)
        first = len(layers) - settings.layers
        trained = {id(part) for module in fitted for part in module.modules()}
        found = {
            f"{root}.{index}.{name}": module
            for index in range(first, len(layers))
            for name, module in layers[index].named_modules()
            if isinstance(module, nn.Linear) and id(module) not in trained
        }
        if not found:
            raise SubFitError(f"finetune.lora: no linear map is kept in the last {settings.layers} layers")
        holder = nn.ModuleDict({str(index): module for index, module in enumerate(found.values())})
        config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(holder))
        self._adapted: list[Any] = list(inject_adapter_in_model(config, holder).children())
        super().__init__(model, dict(zip(found, self._adapted, strict=True)), found)

    def trainable(self) -> Iterator[nn.Module]:
        for module in self._adapted:
            yield from (module.lora_A, module.lora_B)

    @torch.no_grad()
    def merge(self) -> None:
        """Puts linear maps with the adapters' products added to their weights in the places of the adapted ones."""
        for path, adapted in zip(self._new, self._adapted, strict=True):
            base = adapted.get_base_layer()
            weight, change = full_tensor(base.weight), adapted.get_delta_weight("default")
            wide = torch.promote_types(weight.dtype, torch.float32)
            bias = None if base.bias is None else full_tensor(base.bias)
            self._new[path] = linear_like(self.model, base, weight.to(wide) + change.to(wide), bias)
        self.on()
