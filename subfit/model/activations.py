"""The tensors that a branch reads and gives when the model runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from subfit.errors import SubFitError
from subfit.model.offloading import loaded
from subfit.model.processes import unsharded
from subfit.model.submodules import Site, decoder_layers, first_tensor, main_output


@dataclass(frozen=True)
class Branch:
    """A site and the modules that are there."""

    site: Site
    model: nn.Module

    @property
    def core(self) -> nn.Module:
        """The Attention or the FeedForward."""
        return self.model.get_submodule(self.site.path)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the core by itself, outside of its layer."""
        with self.present():
            return self.core(*args, **kwargs)

    @contextmanager
    def present(self) -> Iterator[None]:
        """Within the context, the weights of its layer are whole, and in memory."""
        _, layers = decoder_layers(self.model)
        layer = layers[self.site.layer]
        with unsharded(layer), loaded(layer):
            yield

    @property
    def output_projection(self) -> Any:
        """The linear layer whose output is what the core gives: nn.Linear, or Conv1D of transformers.

        Raises:
            SubFitError: if there is none.
        """
        if self.site.output_projection is None:
            raise SubFitError(f"{self.site.name} has no single output projection ({type(self.core).__name__})")
        return self.model.get_submodule(self.site.output_projection)


class Activations:
    """What passes one site in one forward pass, each (windows, tokens, ...).

    Attributes:
        h: (..., d), the residual stream before the branch.
        x: (..., d), what its core reads: the normed stream, in most architectures.
        y: (..., d), what the branch gives, after its output norm if there is one: what a bypass is to give.
        arguments: all that its core was called with, by position and by name.
    """

    h: Tensor
    x: Tensor
    y: Tensor

    def __init__(self, branch: Branch):
        self._branch = branch
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._hidden: Tensor | None = None

    @property
    def added(self) -> Tensor:
        """(..., d), what the layer adds to the stream: y, or a multiple of it."""
        coefficient = self._branch.site.coefficient
        return self.y if coefficient == 1 else coefficient * self.y

    @property
    def before_norm(self) -> Tensor:
        """(..., d), what the core gives, before the output norm; it is run once more."""
        args, kwargs = self.arguments
        gave: Tensor = main_output(self._branch.run(*args, **kwargs))
        return gave.reshape(self.x.shape)

    @property
    def hidden(self) -> Tensor:
        """(..., `Site.hidden`), what the output projection reads: hidden units of a FeedForward, or heads of an Attention.

        Where the core was not run as far as that, it is run now.

        Raises:
            SubFitError: if the branch has no single output projection.
        """
        if self._hidden is None:
            handle = self._branch.output_projection.register_forward_pre_hook(self._see_hidden(leave=True), with_kwargs=True)
            args, kwargs = self.arguments
            try:
                self._branch.run(*args, **kwargs)
            except _Enough:
                pass
            finally:
                handle.remove()
        assert self._hidden is not None
        return self._hidden

    def _see_hidden(self, leave: bool = False) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hidden = first_tensor(args, kwargs)
            if leave:
                raise _Enough

        return see

    def _see_core(self, leave: bool) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.x, self.arguments, self._hidden = first_tensor(args, kwargs), (args, kwargs), None
            if self._branch.site.input_norm is None:
                self.h = self.x
            if leave:
                raise _Enough

        return see

    def _see_norm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.h = first_tensor(args, kwargs)

    def _see_output(self, leave: bool) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            gave = main_output(output)
            as_it_is = gave.shape == self.x.shape
            self.y = gave if as_it_is else gave.reshape(self.x.shape)  # some mixtures of experts give (tokens, d)
            if leave:
                raise _Enough
            if as_it_is and not self._branch.site.overwritten:
                return None
            given = self.y.clone().reshape(gave.shape)  # the layer goes on from y, which gradients then reach
            return (given, *output[1:]) if isinstance(output, tuple) else given

        return see


class _Enough(Exception):
    """Ends the forward pass of a layer once everything that was asked for has been seen."""


@contextmanager
def watch(model: nn.Module, site: Site, until: Literal["x", "y", "end"] = "end") -> Iterator[Activations]:
    """Within the context, each forward pass through `site` fills the yielded `Activations` anew.

    Args:
        until: "x" or "y" leaves the `with` block as soon as that tensor is known, before the rest of the layer is run.
    """
    seen = Activations(Branch(site, model))
    with ExitStack() as stack:
        before: list[tuple[str | None, Callable[..., None]]] = [
            (site.path, seen._see_core(leave=until == "x")),
            (site.input_norm, seen._see_norm),
            (site.output_projection, seen._see_hidden()),
        ]
        for path, see in before:
            if path is not None:
                hook = model.get_submodule(path).register_forward_pre_hook(see, with_kwargs=True)
                stack.callback(hook.remove)
        last = model.get_submodule(site.output_norm or site.path)
        stack.callback(last.register_forward_hook(seen._see_output(leave=until == "y")).remove)
        with suppress(_Enough):
            yield seen
