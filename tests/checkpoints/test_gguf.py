"""A .gguf file: the same tensors as the folder it was made from, the same facts as the gguf package reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.gguf_blocks import dequantize, read_rows
from hermes_deploy.checkpoints.gguf_header import read_header
from hermes_deploy.errors import CheckpointError
from tests.chat.conftest import MISTRAL_DATA
from tests.chat.corpus import CORPUS
from tests.checkpoints.tiny_gguf import write_tiny_gguf
from tests.fixtures.tiny import make_mistral


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(path))
    assert path.name in str(caught.value)


def test_the_header_holds_what_the_gguf_package_reads(gguf_source: Path) -> None:
    ours, theirs = read_header(gguf_source), gguf.GGUFReader(gguf_source)
    facts = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == facts
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.begin, mine.end) == (tensor.data_offset, tensor.data_offset + tensor.n_bytes)
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert mine.kind == tensor.tensor_type


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_every_block_format_gives_the_numbers_of_the_gguf_package(kind: str) -> None:
    stored = GGMLQuantizationType[kind]
    weights = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    rows = gguf.quantize(weights, stored).view(np.uint8).reshape(6, -1)
    ours = dequantize(rows, stored)
    assert np.array_equal(ours.astype(np.float32), gguf.dequantize(rows, stored))
    assert np.abs(ours - weights).max() < 0.5


def test_the_demos_blocks_are_dequantized_bit_by_bit_like_the_gguf_package() -> None:
    checkpoint = open_checkpoint("smollm2")
    path = next(iter(_demo_file()))
    header = read_header(path)
    for name in ("blk.29.ffn_down.weight", "blk.0.attn_v.weight"):
        tensor = header.tensors[name]
        expected = gguf.dequantize(read_rows(tensor, header.view), tensor.kind)
        assert np.array_equal(dequantize(read_rows(tensor, header.view), tensor.kind), expected)
    down = header.tensors["blk.29.ffn_down.weight"]
    assert np.array_equal(
        checkpoint.tensors["model.layers.29.mlp.down_proj.weight"].load(),
        gguf.dequantize(read_rows(down, header.view), down.kind),
    )


def _demo_file() -> list[Path]:
    from hermes_deploy.checkpoints.source import default_cache

    return list((default_cache() / "wheels").glob("*.gguf"))


def test_every_tensor_is_the_one_of_the_folder_rows_of_q_and_k_put_back(tiny_source: Path, tmp_path: Path) -> None:
    path = write_tiny_gguf(tiny_source, tmp_path / "exact.gguf", kind=GGMLQuantizationType.F32)
    checkpoint, original = open_checkpoint(str(path)), load_file(tiny_source / "model.safetensors")
    assert checkpoint.tensors.keys() == original.keys()
    for name, weights in original.items():
        assert np.array_equal(checkpoint.tensors[name].load(), weights), name
    assert checkpoint.weights_note == ""


def test_quantized_tensors_equal_those_that_transformers_reads(gguf_source: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = LlamaForCausalLM(LlamaConfig(**load_gguf_checkpoint(str(gguf_source))["config"]))
    theirs = load_gguf_checkpoint(str(gguf_source), return_tensors=True, model_to_load=model)["tensors"]
    for name, tensor in open_checkpoint(str(gguf_source)).tensors.items():
        assert np.array_equal(tensor.float32(), theirs[name].numpy()), name


def test_facts_of_the_file_are_in_the_checkpoint(gguf_source: Path) -> None:
    checkpoint = open_checkpoint(str(gguf_source))
    config = checkpoint.config
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (2, 4, 2, 16)
    assert config.rms_norm_eps == 1e-5, "float32 keeps 9.999999747e-06; 1e-5 was meant"
    assert (checkpoint.name, checkpoint.license_id, checkpoint.family) == ("Tiny", "MIT", "chatml")
    assert checkpoint.weights_note == "dequantized from GGUF Q4_1 (16 of 16 matrices), norms F32"
    assert checkpoint.tokenizer.stop_ids == (256, 258)
    assert (checkpoint.tokenizer.bos_token, checkpoint.tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_the_demo_is_described_as_it_is() -> None:
    checkpoint = open_checkpoint("smollm2")
    assert checkpoint.weights_note == (
        "dequantized from GGUF Q4_1 (210 of 211 matrices), token_embd.weight Q8_0, norms F32"
    )
    assert (checkpoint.license_id, checkpoint.config.tied_head) == ("Apache-2.0", True)
    assert checkpoint.family == "smollm2"
    assert "Apache License" in checkpoint.license_text
    assert "2502.02737" in checkpoint.citation
    assert sum(np.prod(tensor.shape) for tensor in checkpoint.tensors.values()) == 134_515_008


def test_sampling_defaults_of_the_file_are_honoured(tiny_source: Path, tmp_path: Path) -> None:
    entries = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    path = write_tiny_gguf(tiny_source, tmp_path / "x.gguf", metadata=entries)
    assert open_checkpoint(str(path)).generation == {"temperature": 0.5, "top_k": 20}


def test_a_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    original = sentencepiece.SentencePieceProcessor(str(MISTRAL_DATA / "tokenizer.model.v1"))
    pieces = range(original.vocab_size())

    def piece_type(i: int) -> int:
        return 2 if original.is_unknown(i) else 3 if original.is_control(i) else 6 if original.is_byte(i) else 1

    folder = make_mistral(tmp_path / "m", vocab_size=len(pieces), num_hidden_layers=1)
    entries: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": [original.id_to_piece(i) for i in pieces],
        "tokenizer.ggml.scores": [original.get_score(i) for i in pieces],
        "tokenizer.ggml.token_type": [piece_type(i) for i in pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
    }
    checkpoint = open_checkpoint(str(write_tiny_gguf(folder, tmp_path / "spm.gguf", metadata=entries)))
    tokenizer = ChatTokenizer(checkpoint.tokenizer)
    texts = [text for text in CORPUS if text not in ("<s>", "</s>", "<unk>")]
    assert [tokenizer.encode(text) for text in texts] == original.encode(texts)
    assert tokenizer.encode_chat([{"role": "user", "content": "hi"}])[0] == 1
    assert checkpoint.family == "mistral-instruct"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"general.architecture": "qwen2"}, "GGUF architecture 'qwen2' is not supported; supported: llama"),
        ({"llama.expert_count": 8}, r"mixture of experts \(Mixtral\) is not built yet"),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling is not supported"),
        ({"llama.rope.scale_linear": 4.0}, "RoPE scaling is not supported"),
        ({"llama.rope.dimension_count": 8}, "differs from the head size 16"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"llama.rope.freq_base": 0.0}, r"RoPE's theta is 0.0; expected a number in 1..1e12"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "epsilon is 0.0; expected a number between 0 and 1"),
        ({"tokenizer.chat_template": 7}, "chat_template is a int, expected text"),
        ({"llama.embedding_length": "64"}, "llama.embedding_length is '64'"),
        ({"llama.block_count": 3}, "model.layers.2.input_layernorm.weight"),
        ({"llama.feed_forward_length": 64}, "the configuration asks for"),
        ({"tokenizer.ggml.model": "bert"}, "kinds that can be read: gpt2, llama"),
        ({"tokenizer.ggml.pre": "surprise"}, "pre-tokenizers that are known: smollm, gpt-2"),
        ({"tokenizer.ggml.merges": ["a €"]}, "names a token that is not in the vocabulary"),
        ({"tokenizer.ggml.merges": None}, "a GGUF without its tokenizer"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "eos_token_id is 5000; ids are 0..319"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    entries: dict[str, Any], message: str, tiny_source: Path, tmp_path: Path
) -> None:
    refused(write_tiny_gguf(tiny_source, tmp_path / "odd.gguf", metadata=entries), message)


class TestDamage:
    @pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.05, 0.5, 0.95, 0.9999])
    def test_a_file_that_is_cut_off_is_refused(self, share: float, gguf_file: Path) -> None:
        data = gguf_file.read_bytes()
        gguf_file.write_bytes(data[: int(len(data) * share)])
        refused(gguf_file, "not a GGUF file|not an intact GGUF file")

    def test_another_file_is_not_taken_for_a_gguf(self, gguf_file: Path) -> None:
        gguf_file.write_bytes(b"\x7fELF" + gguf_file.read_bytes()[4:])
        refused(gguf_file, "starts with b'.x7fELF'")

    def test_offsets_beyond_the_file_or_into_each_other_are_refused(self, gguf_file: Path) -> None:
        data = bytearray(gguf_file.read_bytes())
        at = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8 + 4
        for offset in (1 << 62, 32):
            data[at : at + 8] = offset.to_bytes(8, "little")
            gguf_file.write_bytes(data)
            refused(gguf_file, "tensor output_norm.weight lies at")

    def test_weights_that_are_not_numbers_are_refused_when_loaded(self, gguf_file: Path) -> None:
        tensor = read_header(gguf_file).tensors["blk.1.ffn_up.weight"]
        data = bytearray(gguf_file.read_bytes())
        data[tensor.begin : tensor.begin + 2] = np.float16("nan").tobytes()
        gguf_file.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
            open_checkpoint(str(gguf_file)).tensors["model.layers.1.mlp.up_proj.weight"].load()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_flipped_bit_anywhere_is_refused_or_harmless(self, data: st.DataObject, gguf_source: Path) -> None:
        original = gguf_source.read_bytes()
        begin = min(tensor.begin for tensor in read_header(gguf_source).tensors.values())
        damaged = bytearray(original)
        damaged[data.draw(st.integers(0, begin - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path = gguf_source.with_name("damaged.gguf")
        path.write_bytes(damaged)
        try:
            checkpoint = open_checkpoint(str(path))
            for tensor in checkpoint.tensors.values():
                assert tensor.load().shape == tensor.shape
        except CheckpointError:
            pass


def test_a_gguf_beside_other_files_is_opened_by_its_name(gguf_file: Path) -> None:
    (gguf_file.parent / "config.json").write_text(json.dumps({}))
    assert open_checkpoint(str(gguf_file)).source == f"file {gguf_file.name}"
