"""The LightningDataModule of a distillation: training windows and held-out windows."""

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from subfit.errors import SubFitError

HELD_OUT = 10  # every so many windows, one is held out


class DistillationData(LightningDataModule):
    """Training batches in a random order that depends on the seed alone, and every tenth window held out.

    Training is one epoch of Lightning's, as long as the Trainer's `max_steps`: batch i is the same whether the run before it
    was interrupted or not, and whatever the number of processes, which share each batch equally. A Trainer of several
    processes needs `use_distributed_sampler=False`. See `Distillation` for an example.

    Args:
        tokens: (windows, length).
        batch_size: windows in a batch, of all processes together.
        seed: seed of the order.

    Raises:
        SubFitError: if there are fewer than two windows, the Trainer has no `max_steps`, or the processes cannot share a
            batch.
    """

    def __init__(self, tokens: Tensor, batch_size: int = 4, seed: int = 0):
        super().__init__()
        if len(tokens) < 2:
            raise SubFitError(f"{len(tokens)} windows; fine-tuning needs one to train on, and one to judge by")
        held = held_out(len(tokens))
        self.validation_windows, self.training_windows = tokens[held], tokens[~held]
        self._batch_size, self._seed = batch_size, seed

    def train_dataloader(self) -> DataLoader[Tensor]:
        trainer = self.trainer
        assert trainer is not None
        processes, done = trainer.world_size, trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if trainer.max_steps < 1:
            raise SubFitError("training is counted in steps: give the Trainer max_steps")
        check_shared_equally(self._batch_size, processes)
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        order = BatchOrder(
            len(self.training_windows), self._batch_size, batches, self._seed, done, trainer.global_rank, processes
        )
        return DataLoader(self.training_windows, batch_sampler=order)  # type: ignore[arg-type]  # rows of a tensor

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.validation_windows, batch_size=self._batch_size)  # type: ignore[arg-type]  # rows of a tensor


def check_shared_equally(batch_size: int, processes: int) -> None:
    """Raises SubFitError if the windows of a batch cannot be divided among the processes."""
    if batch_size % processes:
        raise SubFitError(f"finetune: batch_size is {batch_size}; {processes} processes cannot share it equally")


def held_out(windows: int) -> Tensor:
    """Returns which windows are held out, as booleans (windows)."""
    return torch.arange(windows) % HELD_OUT == 0


class BatchOrder(Sampler[list[int]]):
    """The indices of each training batch: one random order of all windows after the other.

    Args:
        windows: number of windows.
        batch_size, seed: as for `DistillationData`.
        batches: number of all batches.
        done: batches that were run before an interruption; they are counted, but not given again.
        rank, processes: which share of each batch to give.
    """

    def __init__(self, windows: int, batch_size: int, batches: int, seed: int, done: int, rank: int, processes: int):
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-batches * batch_size // windows)
        order = torch.cat([torch.randperm(windows, generator=generator) for _ in range(rounds)])
        self._batches = order[: batches * batch_size].view(batches, batch_size)[:, rank::processes].tolist()
        self._done = done

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches[self._done :])
