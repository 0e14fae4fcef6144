"""The plug-in for vLLM (entry point `vllm.general_plugins`), so that `vllm serve FOLDER` serves a compressed model.

vLLM calls `register` in each of its processes. A compressed model is served by vLLM's own class of its dense architecture;
see `vllm_models`. Nothing here or there needs more than torch, transformers and vLLM.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from subfit.model.modeling_subfit import check_format

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


class CompressedConfig(PreTrainedConfig):
    """Reads a compressed model's config.json, for vLLM, as the configuration of its dense architecture."""

    model_type = "subfit"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Returns the dense configuration, with the name of the compressed architecture and the section `subfit`.

        Raises:
            ValueError: if the checkpoint's format is newer, or vLLM cannot serve its architecture or what was done to it.
        """
        subfit = config_dict["subfit"]
        check_format(subfit)
        dense = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(subfit["base_model_type"]))
        if dense not in ARCHITECTURES:
            raise ValueError(f"subfit: {dense} is not served by vLLM; these are: {', '.join(ARCHITECTURES)}")
        if "quantization_config" in config_dict:
            raise ValueError("subfit: vLLM does not serve a compressed model whose checkpoint was quantised")
        own = {"model_type": subfit["base_model_type"], "architectures": [PREFIX + dense]}
        native = {name: value for name, value in config_dict.items() if name != "auto_map"}  # no remote code is needed
        return CONFIG_MAPPING[subfit["base_model_type"]].from_dict(native | own, **kwargs)


class CompressedSettings:
    """What vLLM asks about its settings before it loads a compressed model."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Nothing to do."""

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
    """Makes compressed models known to vLLM; may be called more than once."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    AutoConfig.register(CompressedConfig.model_type, CompressedConfig, exist_ok=True)
    for name in ARCHITECTURES:
        if name in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(PREFIX + name, f"subfit.export.vllm_models:{PREFIX}{name}")
            MODELS_CONFIG_MAP[PREFIX + name] = CompressedSettings
