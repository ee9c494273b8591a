"""LoRA adapters of tiny models, made and written by peft itself, with random numbers in place of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RANK, ALPHA = 4, 8


def train(model: Path, folder: Path, *, dtype: str = "float32", **settings: Any) -> Any:
    """Writes the adapter; gives the PeftModel it came from. `settings`: keys of peft's LoraConfig."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(**{"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM", **settings})
    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    trained = get_peft_model(base, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    trained.save_pretrained(folder)
    return trained


def merged_by_peft(trained: Any) -> dict[str, npt.NDArray[np.float32]]:
    """Name -> weight after peft's own merge."""
    return {name: tensor.float().numpy() for name, tensor in trained.merge_and_unload().state_dict().items()}
