"""The plug-in for vLLM (entry point `vllm.general_plugins`), so that `vllm serve FOLDER` serves a compressed model.

vLLM calls `register` in each of its processes. By its config.json a compressed Llama is a Llama with the architecture
`SubFitLlamaForCausalLM`: vLLM's own class of the dense architecture with bypasses, see `vllm_models`. Nothing here or there
needs more than torch, transformers and vLLM.
"""

from typing import Any

from subfit.model.modeling_subfit import KeptGroups, check_format

PREFIX = "SubFit"  # of the names by which vLLM knows the compressed architectures
ARCHITECTURES = (  # those whose tokens were compared with transformers'
    "GPT2LMHeadModel",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Olmo2ForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "StableLmForCausalLM",
)


class CompressedSettings:
    """What vLLM asks about a model and its settings before it loads a compressed model."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Refuses a model that would not be computed as it should be.

        Raises:
            ValueError: if the checkpoint's format is newer, or vLLM cannot serve its architecture or what was done to it.
        """
        check_format(model_config.hf_config.subfit)
        dense = model_config.architecture.removeprefix(PREFIX)
        if dense not in ARCHITECTURES:
            raise ValueError(f"subfit: {dense} is not served by vLLM; these are: {', '.join(ARCHITECTURES)}")
        for site in model_config.hf_config.subfit["sites"]:
            if site["kind"] == "mixer" or site.get("coefficient", 1) != 1:
                found = "another mixer than an Attention" if site["kind"] == "mixer" else "scaled when it is added"
                raise ValueError(f"subfit: vLLM does not serve a model in which {site['path']} was replaced, {found}")
            if site.get("bypass", {}).get("class") == KeptGroups.__name__:
                raise ValueError(f"subfit: vLLM does not serve a model in which {site['path']} keeps some of its heads")
        if getattr(model_config.hf_config, "quantization_config", None) is not None:
            raise ValueError("subfit: vLLM does not serve a compressed model whose checkpoint was quantised")

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuses what would give other results, and switches off what a model without any Attention cannot have.

        Raises:
            ValueError: if weights are to be quantised, or adapters or a draft model are to be used.
        """
        refused = {
            "quantization": vllm_config.quant_config,
            "LoRA adapters": vllm_config.lora_config,
            "speculative decoding": vllm_config.speculative_config,
        }
        for name, given in refused.items():
            if given is not None:
                raise ValueError(f"subfit: {name} cannot be used with a compressed model in vLLM")
        config = vllm_config.model_config.hf_config
        kinds = [site["kind"] for site in config.subfit["sites"]]
        if kinds.count("attention") == config.num_hidden_layers:
            vllm_config.cache_config.enable_prefix_caching = False  # there is no cache
        if config.model_type == "mixtral" and kinds.count("ffn") == config.num_hidden_layers:
            raise ValueError("subfit: vLLM's Mixtral needs at least one mixture; all FeedForwards are replaced here")


def register() -> None:
    """Makes compressed models known to vLLM, of all its architectures: those that it cannot serve are refused by name.

    May be called more than once.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for name in list(ModelRegistry.get_supported_archs()):  # it grows
        if not name.startswith(PREFIX):
            ModelRegistry.register_model(PREFIX + name, f"subfit.export.vllm_models:{PREFIX}{name}")
            MODELS_CONFIG_MAP[PREFIX + name] = CompressedSettings
