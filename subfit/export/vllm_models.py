"""Compressed models of vLLM: its own classes, with bypasses where submodules were replaced.

`vllm_plugin` names the classes here as strings, such as `SubFitLlamaForCausalLM` for `LlamaForCausalLM`; each is made when
vLLM asks for it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from vllm.config import CompilationConfig, VllmConfig
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.models.transformers.base import Base
from vllm.model_executor.models.utils import PPMissingLayer

from subfit.export.vllm_plugin import PREFIX
from subfit.model.modeling_subfit import build

NAMES = {"MixtralForCausalLM": {"mlp": "block_sparse_moe"}}  # where vLLM and checkpoints call a branch otherwise


class Branch(nn.Module):
    """Gives what a layer gives to its branch, however it calls it, to a bypass.

    Args:
        bypass: maps (..., d) to what is added to the residual stream, of the same shape.
        returns: length of the tuple that the layer expects; 0 for a bare tensor.
    """

    def __init__(self, bypass: nn.Module, returns: int):
        super().__init__()
        self.bypass = bypass
        self.returns = returns

    def forward(self, *args: Any, hidden_states: Tensor | None = None, **kwargs: Any) -> Any:
        y = self.bypass(args[0] if hidden_states is None else hidden_states)
        return (y,) + (None,) * (self.returns - 1) if self.returns else y


class SkippedNorm(nn.Module):
    """In the place of a norm that a bypass does without. The norms of vLLM also add a branch to the residual stream."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            return x
        x = x + residual
        return x, x


class SubFitMixin:
    """What a compressed model adds to vLLM's class of its dense architecture."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        subfit = vllm_config.model_config.hf_config.subfit
        shared = {name: build(spec, {}) for name, spec in subfit["shared"].items()}
        generic = isinstance(self, Base)  # it runs the layers of transformers, below `model`
        names = NAMES.get(type(self).__name__.removeprefix(PREFIX), {})
        stored = {site["path"]: _renamed(site["path"], names) for site in subfit["sites"]}  # in the checkpoint

        def here(path: str) -> str:
            return "model." + path.partition(".")[2] if generic else path

        sites = {here(stored[site["path"]]): site for site in subfit["sites"]}

        def replacement(path: str, old: nn.Module) -> nn.Module:
            _forget(old, vllm_config.compilation_config)
            site = sites[path]
            bypass = build(site["bypass"], shared)
            if site["kind"] == "attention" or site["returns"]:
                return Branch(bypass, site["returns"] if generic else 0)
            return bypass

        with _replacing(sites, replacement, vllm_config.compilation_config) as placed:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.subfit_shared = nn.ModuleDict(shared)
        self.subfit_stored = {"subfit_shared": "subfit_shared"}  # module paths, by the names in the checkpoint
        for path, site in sites.items():
            self.subfit_stored[stored[site["path"]]] = path
            if isinstance(self.get_submodule(path.rpartition(".")[0]), PPMissingLayer):
                continue  # on another rank
            if path not in placed:
                self.set_submodule(path, replacement(path, self.get_submodule(path)))
            for norm in map(here, site["skipped_norms"]):
                self.get_submodule(norm)  # raises if there is none, where the next line would add one
                self.set_submodule(norm, SkippedNorm())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads the bypasses by their names in the checkpoint, and all other weights as the dense class does."""
        own = {path: dict(self._submodule(path).named_parameters()) for path in self.subfit_stored.values()}
        loaded = set[str]()

        def others() -> Iterator[tuple[str, Tensor]]:
            for name, weight in weights:
                root = next((root for root in self.subfit_stored if name.startswith(f"{root}.")), None)
                if root is None:
                    yield name, weight
                    continue
                path, inner = self.subfit_stored[root], name.removeprefix(f"{root}.")
                if own[path]:
                    default_weight_loader(own[path][inner], weight)
                    loaded.add(f"{path}.{inner}")

        return loaded | super().load_weights(others())

    def _submodule(self, path: str) -> nn.Module:
        """The module at a path; one without parameters if its layer is on another rank."""
        layer = self.get_submodule(path.rpartition(".")[0])
        return layer if isinstance(layer, PPMissingLayer) else self.get_submodule(path)


def _renamed(path: str, names: dict[str, str]) -> str:
    parent, dot, name = path.rpartition(".")
    return parent + dot + names.get(name, name)


def _forget(old: nn.Module, config: CompilationConfig) -> None:
    """Takes a module that leaves the model off vLLM's lists: of what has a key-value cache, and of mixtures."""
    for name, layer in list(config.static_forward_context.items()):
        if any(layer is module for module in old.modules()):
            del config.static_forward_context[name]
            if name in config.static_all_moe_layers:
                config.static_all_moe_layers.remove(name)


@contextmanager
def _replacing(
    sites: Iterable[str], replacement: Callable[[str, nn.Module], nn.Module], config: CompilationConfig
) -> Iterator[set[str]]:
    """Within the context, a module is exchanged as soon as its layer registers it: it is freed before the next is built.

    So loading takes the memory of the compressed model and of one branch. Which layer a module is in is known from the
    names that vLLM gives to its Attentions and mixtures.

    Args:
        sites: module paths to exchange.
        replacement: gives the new module, from the path and the old module.

    Yields:
        The paths that were exchanged, filled on the way.
    """
    placed = set[str]()
    paths: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def register(parent: nn.Module, name: str, module: nn.Module) -> Any:
        known = next((n for n, layer in config.static_forward_context.items() if layer is module), paths.get(module))
        if known is not None and known.endswith(f".{name}"):
            paths[parent] = known.removesuffix(f".{name}")
        path = f"{paths[parent]}.{name}" if parent in paths else None
        if path is None or path not in sites:
            return None
        placed.add(path)
        return replacement(path, module)

    handle = register_module_module_registration_hook(register)
    try:
        yield placed
    finally:
        handle.remove()


def __getattr__(name: str) -> type:
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    dense = ModelRegistry.models[name.removeprefix(PREFIX)].load_model_cls()
    globals()[name] = found = type(name, (SubFitMixin, dense), {"__module__": __name__})
    return found
