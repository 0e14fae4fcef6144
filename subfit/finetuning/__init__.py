"""Fine-tuning of all that was fitted together by gradients, as a LightningModule and a LightningDataModule.

`Distillation` has an example of their use in a Trainer of one's own; `FineTuning` says what can be set.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subfit.finetuning.data_module import DistillationData
    from subfit.finetuning.distillation import Distillation
    from subfit.finetuning.losses import Batch
    from subfit.finetuning.settings import FineTuning, LoRA

__all__ = ["Batch", "Distillation", "DistillationData", "FineTuning", "LoRA"]

_MODULES = {
    "Batch": "losses",
    "Distillation": "distillation",
    "DistillationData": "data_module",
    "FineTuning": "settings",
    "LoRA": "settings",
}


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on first use: the settings are read without torch and Lightning
        return getattr(import_module(f"subfit.finetuning.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'subfit.finetuning' has no attribute {name!r}")
