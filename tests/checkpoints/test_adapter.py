"""A LoRA that peft wrote is merged as peft merges it, lazily, over every source that a model comes from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hermes_deploy.checkpoints import apply_adapter, open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import CheckpointError
from tests.checkpoints.conftest import edit_json
from tests.checkpoints.lora_folder import ALPHA, RANK, merged_by_peft, train
from tests.fixtures.tiny import byte_tokenizer_json, make_mistral

# peft warns of embeddings that it saves and of tied heads, transformers of its own renamings
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="session")
def tied_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mistral(tmp_path_factory.mktemp("tied") / "model", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def adapter_source(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "pirate"
    train(tiny_source, folder, target_modules=["q_proj", "down_proj"])
    return folder


@pytest.fixture
def adapter(adapter_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter_source, tmp_path / "pirate"))


def logits(model: Path, checkpoint: Checkpoint, ids: Any) -> Any:
    """What transformers computes with the checkpoint's tensors."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig.from_pretrained(model)
    config.tie_word_embeddings = checkpoint.config.tied_head
    decoder = MistralForCausalLM(config).eval()
    weights = {name: torch.from_numpy(tensor.float32().copy()) for name, tensor in checkpoint.tensors.items()}
    absent, unknown = decoder.load_state_dict(weights, strict=False)
    assert (absent, unknown) == (["lm_head.weight"] if checkpoint.config.tied_head else [], [])
    decoder.tie_weights()
    with torch.no_grad():
        return decoder(ids).logits


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": LINEARS, "use_rslora": True},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 7}},
        {"target_modules": LINEARS, "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 3, "k_proj": 5}},
        {
            "target_modules": LINEARS,
            "use_rslora": True,
            "rank_pattern": {"mlp.up_proj": 9},
            "alpha_pattern": {"o_proj": 1},
        },
        {"target_modules": r".*\.(self_attn|mlp)\.[a-z]+_proj", "exclude_modules": r".*\.0\.mlp.*"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.v_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": 0},
        {"target_modules": LINEARS, "use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"], "use_dora": True, "use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "mlp"]},
        {"target_modules": LINEARS, "init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
def test_every_merged_weight_equals_pefts_own_to_1e_6(
    tiny_source: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    expected = merged_by_peft(train(tiny_source, tmp_path / "lora", **settings))
    base = open_checkpoint(str(tiny_source))
    merged = apply_adapter(base, tmp_path / "lora")
    assert list(merged.tensors) == list(base.tensors)
    changed = 0
    for name, tensor in merged.tensors.items():
        weights = tensor.load()
        assert weights.shape == tensor.shape
        np.testing.assert_allclose(weights, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
        changed += not np.array_equal(weights, base.tensors[name].load())
    assert merged.adapter is not None
    assert merged.adapter.merged_tensors == changed > 0


@pytest.mark.parametrize(
    ("settings", "stays_tied"),
    [
        ({"target_modules": LINEARS}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["q_proj", "embed_tokens"]}, False),
        ({"target_modules": ["embed_tokens"], "use_dora": True}, False),
        ({"target_modules": ["embed_tokens", "lm_head"]}, False),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    ],
    ids=str,
)
def test_over_a_tied_head_the_merged_model_answers_like_the_trained_one(
    tied_source: Path, tmp_path: Path, settings: dict[str, Any], stays_tied: bool
) -> None:
    """Like the adapter attached, not like `merge_and_unload`, which changes both ends of the tie."""
    import torch

    trained = train(tied_source, tmp_path / "lora", **settings)
    merged = apply_adapter(open_checkpoint(str(tied_source)), tmp_path / "lora")
    ids = torch.arange(40)[None]
    assert merged.config.tied_head is stays_tied
    assert ("lm_head.weight" in merged.tensors) is not stays_tied
    with torch.no_grad():
        torch.testing.assert_close(logits(tied_source, merged, ids), trained(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_merged_in_float32(tmp_path: Path, dtype: str) -> None:
    model = make_mistral(tmp_path / "model", dtype=dtype)
    expected = merged_by_peft(train(model, tmp_path / "lora", target_modules=LINEARS))
    base = open_checkpoint(str(model))
    merged = apply_adapter(base, tmp_path / "lora")
    assert merged.tensors[Q0].load().dtype == np.float32
    np.testing.assert_allclose(merged.tensors[Q0].load(), expected[Q0], rtol=1e-6, atol=1e-6)
    assert merged.tensors["model.norm.weight"].load().dtype == base.tensors["model.norm.weight"].load().dtype


def test_a_gguf_is_merged_after_it_is_dequantized(gguf_source: Path, adapter: Path) -> None:
    base = open_checkpoint(str(gguf_source))
    merged = apply_adapter(base, adapter)
    pair = load_file(adapter / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.self_attn.q_proj."
    change = pair[f"{prefix}lora_B.weight"] @ pair[f"{prefix}lora_A.weight"] * (ALPHA / RANK)
    np.testing.assert_allclose(merged.tensors[Q0].load(), base.tensors[Q0].load() + change, atol=1e-6)
    assert merged.weights_note == f"{base.weights_note}; LoRA adapter pirate merged into 4 tensors in float32"


def test_nothing_is_read_before_a_tensor_is_asked_for(
    tiny: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    monkeypatch.setattr(
        "hermes_deploy.checkpoints.safetensors_file.check_finite", lambda _array, name, _where: loads.append(name)
    )
    merged = apply_adapter(open_checkpoint(str(tiny)), adapter)
    assert loads == []
    merged.tensors[Q0].load()
    module = f"base_model.model.{Q0.removesuffix('.weight')}"
    assert sorted(loads) == [f"{module}.lora_A.weight", f"{module}.lora_B.weight", Q0]


def test_the_facts_say_what_was_merged(tiny: Path, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    (adapter / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    base = open_checkpoint(str(tiny))
    assert base.adapter is None
    merged = apply_adapter(base, adapter)
    facts = merged.adapter
    assert facts is not None
    assert (facts.name, facts.base_model, facts.rank, facts.alpha) == ("pirate", "org/base", RANK, ALPHA)
    assert (facts.modules, facts.merged_tensors) == (("down_proj", "q_proj"), 4)
    assert facts.license_id == "CC-BY-NC-4.0"
    assert merged.name == "tiny+pirate"
    with pytest.raises(CheckpointError, match="already has the adapter pirate; only one"):
        apply_adapter(merged, adapter)


def test_the_fingerprint_covers_the_adapter_and_not_its_place(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    base = open_checkpoint(str(tiny))
    first = apply_adapter(base, adapter)
    assert first.sha256 != base.sha256
    moved = Path(shutil.copytree(adapter, tmp_path / "elsewhere"))
    assert apply_adapter(base, moved).sha256 == first.sha256
    weights = load_file(moved / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] += 1
    save_file(weights, moved / "adapter_model.safetensors")
    changed = apply_adapter(base, moved)
    assert changed.sha256 != first.sha256
    edit_json(moved / "adapter_config.json", lora_alpha=ALPHA + 1)
    assert apply_adapter(base, moved).sha256 != changed.sha256


class TestTokenizer:
    """A tokenizer beside the adapter is the one that was trained with."""

    def test_without_one_the_models_stays(self, tiny: Path, adapter: Path) -> None:
        base = open_checkpoint(str(tiny))
        assert apply_adapter(base, adapter).tokenizer == base.tokenizer

    def test_its_tokens_template_and_stops_are_taken(self, tiny: Path, adapter: Path) -> None:
        text = byte_tokenizer_json().replace("<filler_300>", "<|tool|>")
        (adapter / "tokenizer.json").write_text(text, encoding="utf-8")
        edit_json(adapter / "tokenizer_config.json", eos_token="<|tool|>")
        (adapter / "chat_template.jinja").write_text("<|im_start|> mine")
        base = open_checkpoint(str(tiny))
        merged = apply_adapter(base, adapter)
        assert merged.tokenizer.tokenizer_json == text.encode()
        assert merged.tokenizer.chat_template == "<|im_start|> mine"
        assert (merged.tokenizer.bos_token, merged.tokenizer.eos_token) == ("<|im_start|>", "<|tool|>")
        assert merged.tokenizer.stop_ids == tuple(sorted({*base.tokenizer.stop_ids, 300}))

    def test_what_it_does_not_say_is_the_models(self, tiny: Path, adapter: Path) -> None:
        (adapter / "tokenizer.json").write_text(byte_tokenizer_json(), encoding="utf-8")
        base = open_checkpoint(str(tiny))
        assert apply_adapter(base, adapter).tokenizer == base.tokenizer

    def test_more_tokens_than_the_embedding_has_rows_are_refused(self, tiny: Path, adapter: Path) -> None:
        (adapter / "tokenizer.json").write_text(byte_tokenizer_json(322), encoding="utf-8")
        with pytest.raises(CheckpointError, match="pirate: the tokenizer has ids up to 321, the embedding only 320"):
            apply_adapter(open_checkpoint(str(tiny)), adapter)
