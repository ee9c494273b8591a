"""A folder in Hugging Face layout: what comes out equals what torch reads; what is broken is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.errors import CheckpointError
from tests.checkpoints.conftest import edit_json
from tests.fixtures.tiny import CHATML, make_mistral

INDEX = "model.safetensors.index.json"
DAMAGED = "model.layers.1.mlp.up_proj.weight"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(folder))
    assert str(folder.name) in str(caught.value)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_every_tensor_equals_what_torch_reads_from_the_shards(sharded: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    assert len(shards(sharded)) > 2
    expected = {name: tensor for shard in shards(sharded) for name, tensor in load_torch(shard).items()}
    checkpoint = open_checkpoint(str(sharded))
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == "BF16"
        assert tensor.shape == tuple(expected[name].shape)
        assert np.array_equal(tensor.float32(), expected[name].to(torch.float32).numpy())


def test_a_head_of_its_own_width_and_a_tied_head_are_read(tmp_path: Path) -> None:
    folder = make_mistral(tmp_path / "m", head_dim=24, tie_word_embeddings=True, dtype="float16", sliding_window=7)
    checkpoint = open_checkpoint(str(folder))
    assert (checkpoint.config.head_dim, checkpoint.config.sliding_window, checkpoint.config.tied_head) == (24, 7, True)
    assert "lm_head.weight" not in checkpoint.tensors
    assert checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].load().dtype == np.float16


def test_a_rope_theta_written_by_transformers_5_is_found(tmp_path: Path) -> None:
    folder = make_mistral(tmp_path / "m", rope_theta=250000.0)
    assert open_checkpoint(str(folder)).config.rope_theta == 250000.0


def test_loading_reads_from_the_map_and_cannot_change_it(tiny: Path) -> None:
    weights = open_checkpoint(str(tiny)).tensors["model.norm.weight"].load()
    assert not weights.flags.writeable


def test_the_fingerprint_follows_the_bytes_and_not_the_place(tiny: Path, tiny_source: Path) -> None:
    fingerprint = open_checkpoint(str(tiny)).sha256
    assert fingerprint == open_checkpoint(str(tiny_source)).sha256
    weights = bytearray((tiny / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (tiny / "model.safetensors").write_bytes(weights)
    assert open_checkpoint(str(tiny)).sha256 != fingerprint


def test_opening_needs_neither_torch_nor_transformers(tiny: Path) -> None:
    code = (
        "import sys; from hermes_deploy.checkpoints import open_checkpoint;"
        f"c = open_checkpoint({str(tiny)!r}); [t.load() for t in c.tensors.values()]; open_checkpoint('smollm2');"
        "bad = {'torch', 'transformers'} & set(sys.modules); sys.exit(f'imported: {bad}' if bad else 0)"
    )
    # mistral-common is there for tests only; the gguf package imports it, and with it much more.
    hide = "import sys; sys.modules['mistral_common'] = None;"
    subprocess.run([sys.executable, "-c", hide + code], check=True)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    gone = shards(sharded)[1]
    gone.unlink()
    refused(sharded, f"incomplete: {gone.name} of .* shards missing")


def test_an_index_that_points_out_of_the_folder_is_refused(sharded: Path) -> None:
    (sharded.parent / "secret.safetensors").write_bytes(shards(sharded)[0].read_bytes())
    index = json.loads((sharded / INDEX).read_bytes())
    for path in ("../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", "x.bin", 3):
        index["weight_map"]["model.norm.weight"] = path
        (sharded / INDEX).write_text(json.dumps(index))
        refused(sharded, "only .safetensors files of the same folder")


def test_an_index_that_contradicts_its_shards_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_bytes())
    index["weight_map"]["model.layers.9.extra.weight"] = shards(sharded)[0].name
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, "does not hold what .* says: model.layers.9.extra.weight")


def test_a_missing_tensor_is_named(tiny: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tiny / "model.safetensors")
    refused(tiny, r"model.layers.1.mlp.up_proj.weight is missing")


def test_a_tensor_of_another_shape_is_named(tiny: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    weights["model.norm.weight"] = np.ones(63, np.float32)
    save_file(weights, tiny / "model.safetensors")
    refused(tiny, r"model.norm.weight has shape \[63\], the configuration asks for \[64\]")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_numbers_are_named_when_they_are_loaded(tmp_path: Path, dtype: str, value: str) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    folder = make_mistral(tmp_path / "m", dtype=dtype)
    weights = load_torch(folder / "model.safetensors")
    assert weights[DAMAGED].dtype == getattr(torch, dtype)
    weights[DAMAGED][3, 5] = float(value)
    save_torch(weights, folder / "model.safetensors")
    tensors = open_checkpoint(str(folder)).tensors
    with pytest.raises(CheckpointError, match=f"model.safetensors: {DAMAGED} holds NaN or infinite weights"):
        tensors[DAMAGED].load()
    for name in tensors.keys() - {DAMAGED}:
        tensors[name].load()


def test_a_bias_that_the_config_hides_is_refused(tiny: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    save_file(weights, tiny / "model.safetensors")
    refused(tiny, "q_proj.bias is not part of a MistralForCausalLM")


def test_rotary_tables_of_old_exporters_are_left_out(tiny: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(weights, tiny / "model.safetensors")
    assert not any("rotary" in name for name in open_checkpoint(str(tiny)).tensors)


def test_a_separate_head_beside_a_tied_one_must_be_the_embedding(tmp_path: Path) -> None:
    folder = make_mistral(tmp_path / "m", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    save_file(weights, folder / "model.safetensors")
    assert "lm_head.weight" not in open_checkpoint(str(folder)).tensors
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors")
    refused(folder, "yet lm_head.weight differs")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_the_reason_and_a_way_out(tiny: Path, name: str) -> None:
    (tiny / "model.safetensors").rename(tiny / name)
    refused(tiny, f"only pickled weights \\({name}\\); a pickle runs code .*save_pretrained")


def test_a_pickle_beside_safetensors_is_never_opened(tiny: Path) -> None:
    (tiny / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert open_checkpoint(str(tiny)).tensors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[]", "holds a JSON list"),
        ("config.json", b"[" * 100_000, "not valid JSON"),
        ("tokenizer.json", b"{}", "not a tokenizers file"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": "b"}}}', "ids are not numbers"),
        ("generation_config.json", b'{"temperature": "hot"}', "temperature is 'hot', not a number"),
        ("generation_config.json", b'{"top_p": 7}', "top_p is 7; allowed"),
        ("generation_config.json", b'{"eos_token_id": 99999}', "eos_token_id 99999 is not in the vocabulary"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "eos_token_id is 'x'"),
        (INDEX, b"{}", "has no weight_map"),
        ("tokenizer_config.json", b'{"bos_token": "\\ud800"}', "bos_token is not valid Unicode text"),
        ("chat_template.json", b'{"chat_template": "<|im_start|>\\ud800"}', "chat_template is not valid Unicode text"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
    ],
)
def test_a_damaged_side_file_is_named(tiny: Path, name: str, content: bytes, message: str) -> None:
    (tiny / name).write_bytes(content)
    refused(tiny, message)


def test_a_tokenizer_of_another_model_is_refused(tiny: Path) -> None:
    from tests.fixtures.tiny import byte_tokenizer_json

    (tiny / "tokenizer.json").write_text(byte_tokenizer_json(400))
    refused(tiny, "ids up to 399, the embedding only 320 rows")


def test_a_folder_without_config_tokenizer_or_weights_says_which(tiny: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    refused(tiny, "one of these is needed: tokenizer.json, tokenizer.model, tekken.json")
    (tiny / "model.safetensors").unlink()
    refused(tiny, "has no weights; expected model.safetensors")
    (tiny / "x.gguf").touch()
    refused(tiny, r"to use its GGUF give the file: .*x\.gguf")
    (tiny / "config.json").unlink()
    refused(tiny, "has no config.json")


class TestChatSettings:
    def test_stop_ids_come_from_generation_config_tokenizer_and_family(self, tiny: Path) -> None:
        edit_json(tiny / "generation_config.json", eos_token_id=[7, 258], temperature=0.8, top_k=40, do_sample=True)
        checkpoint = open_checkpoint(str(tiny))
        # 256 is <|endoftext|>, which ChatML checkpoints often forget to name.
        assert checkpoint.tokenizer.stop_ids == (7, 256, 258)
        assert checkpoint.generation == {"temperature": 0.8, "top_k": 40}

    def test_a_checkpoint_that_says_greedy_is_greedy(self, tiny: Path) -> None:
        edit_json(tiny / "generation_config.json", do_sample=False, temperature=0.8)
        assert open_checkpoint(str(tiny)).generation["temperature"] == 0

    def test_the_jinja_file_wins_over_the_config(self, tiny: Path) -> None:
        (tiny / "chat_template.jinja").write_text("[INST] mine")
        checkpoint = open_checkpoint(str(tiny))
        assert (checkpoint.family, checkpoint.tokenizer.chat_template) == ("mistral-instruct", "[INST] mine")

    def test_of_several_templates_the_default_is_taken(self, tiny: Path) -> None:
        several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
        edit_json(tiny / "tokenizer_config.json", chat_template=several)
        assert open_checkpoint(str(tiny)).tokenizer.chat_template == CHATML
        edit_json(tiny / "tokenizer_config.json", chat_template=several[:1])
        refused(tiny, "of the chat templates tool_use none is named default")

    def test_without_a_template_the_chat_tokens_tell_the_family(self, tiny: Path) -> None:
        edit_json(tiny / "tokenizer_config.json", chat_template=...)
        checkpoint = open_checkpoint(str(tiny))
        assert checkpoint.family == "chatml"
        assert "<|im_start|>" in checkpoint.tokenizer.chat_template

    def test_without_template_and_chat_tokens_it_is_refused(self, tiny: Path) -> None:
        edit_json(tiny / "tokenizer_config.json", chat_template=..., bos_token=..., eos_token=...)
        data = json.loads((tiny / "tokenizer.json").read_text().replace("<|im_", "<|no_"))
        (tiny / "tokenizer.json").write_text(json.dumps(data))
        refused(tiny, "no chat template, and no chat token .* base model")

    @pytest.mark.parametrize(
        ("template", "family"),
        [
            # as in the published templates of the 7B v0.3 and of NeMo
            ('{{- "[INST] " + message["content"] + "[/INST]" }}', "mistral-instruct"),
            ('{{- "[INST]" + message["content"] + "[/INST]" }}', "mistral-nemo"),
            (CHATML, "chatml"),
            ("{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM' }}", "smollm2"),
        ],
    )
    def test_families_with_sampling_of_their_own_are_told_apart_by_their_templates(
        self, tiny: Path, template: str, family: str
    ) -> None:
        (tiny / "chat_template.jinja").write_text(template)
        assert open_checkpoint(str(tiny)).family == family

    def test_a_template_of_no_known_family_is_refused(self, tiny: Path) -> None:
        edit_json(tiny / "tokenizer_config.json", chat_template="{{ messages }}")
        refused(tiny, r"of no known family; families are known by: named SmolLM \(smollm2\), <\|im_start\|> \(chatml\)")

    def test_special_tokens_are_read_as_text_or_object(self, tiny: Path) -> None:
        edit_json(tiny / "tokenizer_config.json", bos_token={"content": "<|endoftext|>", "special": True})
        edit_json(tiny / "special_tokens_map.json", bos_token="not this", eos_token="nor this")
        files = open_checkpoint(str(tiny)).tokenizer
        assert (files.bos_token, files.eos_token) == ("<|endoftext|>", "<|im_end|>")
        edit_json(tiny / "tokenizer_config.json", eos_token="<nowhere>")
        refused(tiny, "eos_token '<nowhere>' is not in the tokenizer's vocabulary")


class TestNotices:
    def test_licence_and_citation_come_from_the_model_card(self, tiny: Path) -> None:
        card = "---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n\n```bibtex\n@misc{tiny,\n  year={2026}\n}\n```\n"
        (tiny / "README.md").write_text(card)
        checkpoint = open_checkpoint(str(tiny))
        assert checkpoint.license_id == "Apache-2.0"
        assert checkpoint.citation == "@misc{tiny,\n  year={2026}\n}"

    def test_the_model_card_is_taken_along_whole_and_bounded(self, tiny: Path) -> None:
        assert open_checkpoint(str(tiny)).model_card == ""
        (tiny / "README.md").write_text("---\nlicense: mit\n---\n# Täny\n", encoding="utf-8")
        assert open_checkpoint(str(tiny)).model_card == "---\nlicense: mit\n---\n# Täny\n"
        (tiny / "README.md").write_bytes(b"#" * ((4 << 20) + 1))
        refused(tiny, r"README.md has 4194305 bytes; at most 4194304 are read")

    def test_a_licence_of_its_own_keeps_its_name(self, tiny: Path) -> None:
        (tiny / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-community\n---\n")
        assert open_checkpoint(str(tiny)).license_id == "tiny-community"

    def test_licence_and_citation_files_are_taken_along(self, tiny: Path) -> None:
        (tiny / "LICENSE").write_text("MIT License\n\nCopyright")
        (tiny / "CITATION.cff").write_text("cff-version: 1.2.0")
        checkpoint = open_checkpoint(str(tiny))
        assert (checkpoint.license_id, checkpoint.license_text) == ("MIT", "MIT License\n\nCopyright")
        assert checkpoint.citation == "cff-version: 1.2.0"

    def test_silence_is_unknown(self, tiny: Path) -> None:
        checkpoint = open_checkpoint(str(tiny))
        assert (checkpoint.license_id, checkpoint.license_text, checkpoint.citation) == ("unknown", "", "")
