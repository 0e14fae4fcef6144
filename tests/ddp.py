"""Run by torchrun: fine-tunes a tiny model in as many processes as there are, and writes the trained weights to a file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from conftest import recipe, tiny_model, tiny_tokens

from subfit.calibration.capture import Calibration
from subfit.finetuning.fine_tune import fine_tune
from subfit.finetuning.settings import FineTuning
from subfit.model.processes import is_rank_zero
from subfit.pipeline import fit_recipe
from subfit.tracking.loggers import Log


def main(path: str, processes: int) -> None:
    torch.manual_seed(0)
    calibration = Calibration(tiny_model().double(), tiny_tokens(20, 16))
    replacements, _ = fit_recipe(calibration, recipe(sparsity=0.5))
    strategy = "ddp" if processes > 1 else "auto"
    flags = dict(max_steps=3, val_check_interval=1, devices=processes, strategy=strategy, precision="64-true")
    gradients: list[torch.Tensor] = []

    from subfit.finetuning.distillation import Distillation

    def keep(self, optimizer):
        gradients.extend(weight.grad.clone() for weight in self.master_weights)

    Distillation.on_before_optimizer_step = keep
    record = fine_tune(calibration, replacements, FineTuning(trainer=flags, kl=1.0, stream=0.3), Log())
    if is_rank_zero():
        torch.save({"gradients": gradients, "curve": [point["kl"] for point in record["curve"]]}, path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
