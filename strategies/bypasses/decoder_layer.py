"""A whole decoder layer in the place of a run of layers, trained by gradient descent."""

from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.fitting.gradient_fit import fit_by_gradient
from subfit.fitting.substitutes import RetrainedLayer, Run


class DecoderLayer(RetrainedLayer):
    """One layer, retrained to jump from the stream before a run of layers to the stream after it.

    The light network of LLM-Streamline (arXiv 2403.19135): trained by AdamW on the mean squared error of the stream, the
    best state on a tenth of the windows that are held out. Use it through `at_cut` for both types, fitting `sequential`: the
    last layer of the run stays, starting from its own weights, and the others are dropped. It keeps its key-value cache.

    Args:
        epochs: passes over the calibration windows.
        learning_rate: at the first step.
        batch: windows in each step.
        seed: of the batches and the held-out windows; the run's if not given.

    Raises:
        SubFitError: if a number is not positive.
    """

    def __init__(self, epochs: int = 10, learning_rate: float = 2e-4, batch: int = 4, seed: int | None = None) -> None:
        if min(epochs, batch) < 1:
            raise SubFitError(f"epochs is {epochs} and batch {batch}; both must be at least 1")
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch = batch
        self.seed = seed

    def fit(self, layer: nn.Module, run: Run, inputs: Tensor, targets: Tensor) -> nn.Module:
        scale = targets.float().square().mean()

        def loss(before: Tensor, after: Tensor) -> Tensor:
            return nn.functional.mse_loss(run(layer, before), after.float()) / scale

        steps = self.epochs * len(inputs) // self.batch
        fit_by_gradient(layer, loss, inputs, targets, steps, self.learning_rate, self.batch, self.seed or 0)
        return layer
