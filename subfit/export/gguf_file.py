"""Writes a plan for llama.cpp's architecture `deci` and a tokenizer as a GGUF file."""

import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from torch import Tensor

from subfit.export.deci import Plan
from subfit.export.gguf_tokenizer import Vocabulary

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
TYPE_OF = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def write_gguf(path: Path, plan: Plan, vocabulary: Vocabulary, about: dict[str, Any], kind: str) -> None:
    """Writes a file, one tensor at a time: matrices in the data type `kind`, a key of `TYPES`; all else in float32.

    Args:
        about: what is said of the model, by the file's own keys, such as `general.name`.
    """
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells each step
    writer = GGUFWriter(path, "deci")
    writer.add_type(gguf.GGUFType.MODEL)
    for key, value in about.items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            (writer.add_string if isinstance(value, str) else writer.add_array)(key, value)
    wanted, file_type = TYPES[kind]
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_shape(writer, plan)
    vocabulary.write(writer)
    tensors = [(name, value, _type(value, wanted)) for name, value in plan.tensors()]
    for name, value, stored in tensors:
        shape, dtype = _stored(value, stored)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, value, stored in tensors:
        writer.write_tensor_data(quantize(np.ascontiguousarray(value.float().cpu().numpy()), stored))
    writer.close()


def _write_shape(writer: GGUFWriter, plan: Plan) -> None:
    writer.add_block_count(len(plan.layers))
    writer.add_context_length(plan.context)
    writer.add_embedding_length(plan.embedding.shape[1])
    writer.add_vocab_size(len(plan.embedding))
    writer.add_head_count([layer.heads for layer in plan.layers])
    writer.add_head_count_kv([layer.kv_heads for layer in plan.layers])
    writer.add_feed_forward_length([layer.units for layer in plan.layers])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(plan.head_size)
    writer.add_layer_norm_rms_eps(plan.epsilon)
    writer.add_rope_freq_base(plan.theta)


def _type(value: Tensor, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type that a tensor is stored in: float32 for vectors, float16 for rows that do not fit blocks."""
    if value.ndim == 1:
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if value.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _stored(value: Tensor, stored: GGMLQuantizationType) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the data type of a tensor as numpy holds it: blocks are bytes."""
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    if stored in plain:
        return tuple(value.shape), np.dtype(plain[stored])
    return gguf.quant_shape_to_byte_shape(tuple(value.shape), stored), np.dtype(np.uint8)
