"""What every reader gives: a `Checkpoint`, with tensors that are read only when asked for.

Tensor names are those of Hugging Face safetensors (`model.layers.0.self_attn.q_proj.weight`,
`model.embed_tokens.weight`, `model.norm.weight`, `lm_head.weight`), whatever the file was.
Linear weights are `[out, in]` as in PyTorch. Knows no graph and no tokenizer library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles

__all__ = ["AdapterFacts", "Checkpoint", "DecoderConfig", "LazyTensor", "TokenizerFiles"]


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the decoder, from config.json or GGUF metadata, validated.

    `max_position`: longest context the checkpoint was trained for, tokens.
    `sliding_window`: tokens that attention looks back, the own one included; None = all.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position: int
    sliding_window: int | None = None
    tied_head: bool = False


@dataclass(frozen=True)
class LazyTensor:
    """`load()` reads (and for GGUF dequantizes) the tensor: float32, float16 or ml_dtypes.bfloat16.

    `dtype` is the dtype in the file ("F32", "F16", "BF16", "Q4_1", ...), for reports.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], npt.NDArray[Any]]

    def float32(self) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(self.load(), dtype=np.float32)


@dataclass(frozen=True)
class AdapterFacts:
    """Where the merged part of a checkpoint came from.

    `sha256`: of all its files together. `base_model`: what adapter_config.json says it was trained on, ""
    where it says nothing. `rank` and `alpha`: the defaults of the configuration; patterns may change them for
    single modules. `modules`: kinds of the changed modules (`q_proj`, `embed_tokens`), sorted. `license_id`:
    what its own README.md says. `merged_into`: name and sha256 of the checkpoint as it was before.
    """

    name: str
    sha256: str
    base_model: str
    rank: int
    alpha: float
    modules: tuple[str, ...]
    merged_tensors: int
    merged_into: str
    merged_into_sha256: str
    license_id: str = "unknown"


@dataclass(frozen=True)
class Checkpoint:
    """`sha256` identifies the source bytes (of all weight, config and tokenizer files together, and of an adapter).

    `generation`: the checkpoint's own generation_config, known keys only (temperature, top_k, top_p, ...).
    `license_id` is an SPDX id or the checkpoint's own word, "unknown" where it says nothing.
    `model_card`: text of the source's README.md, "" where it has none. `adapter`: what was merged, if anything.
    """

    name: str
    source: str
    revision: str | None
    sha256: str
    family: str
    config: DecoderConfig
    tensors: Mapping[str, LazyTensor]
    tokenizer: TokenizerFiles
    generation: Mapping[str, float] = field(default_factory=dict)
    license_id: str = "unknown"
    license_text: str = ""
    citation: str = ""
    weights_note: str = ""
    """What the weights are when they are not the original, e.g. "dequantized from GGUF Q4_1"."""
    model_card: str = ""
    adapter: AdapterFacts | None = None
