"""An adapter that is not whole, not LoRA or not for this model is refused, and the message names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from hermes_deploy.checkpoints import apply_adapter, open_checkpoint, untrusted_patterns
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import CheckpointError
from tests.checkpoints.conftest import edit_json
from tests.checkpoints.lora_folder import train
from tests.fixtures.tiny import make_mistral

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
Arrays = dict[str, npt.NDArray[Any]]
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LAYER0 = "base_model.model.model.layers.0."
Q0 = f"{LAYER0}self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"
MERGE_IT = r"Merge it with peft \(merge_and_unload, .*\) and give the merged folder"


@pytest.fixture(scope="module")
def base(tiny_source: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_source))


@pytest.fixture(scope="module")
def plain_source(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "lora"
    train(tiny_source, folder, target_modules=["q_proj", "down_proj"])
    return folder


@pytest.fixture(scope="module")
def dora_source(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dora") / "lora"
    train(tiny_source, folder, target_modules=["q_proj"], modules_to_save=["embed_tokens"], use_dora=True)
    return folder


@pytest.fixture
def plain(plain_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_source, tmp_path / "lora"))


@pytest.fixture
def dora(dora_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dora_source, tmp_path / "lora"))


def refused(base: Checkpoint, folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        apply_adapter(base, folder)
    assert "lora" in str(caught.value)


def edit_weights(folder: Path, change: Callable[[Arrays], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def with_change(name: str, value: npt.NDArray[Any] | None) -> Callable[[Arrays], object]:
    return lambda weights: weights.pop(name) if value is None else weights.update({name: value})


class TestConfiguration:
    @pytest.mark.parametrize(
        "kind", ["IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "ADALORA", "PROMPT_TUNING", "PREFIX_TUNING", "XLORA"]
    )
    def test_other_kinds_of_adapters_are_refused_by_name(self, base: Checkpoint, plain: Path, kind: str) -> None:
        edit_json(plain / CONFIG, peft_type=kind)
        refused(base, plain, rf"{CONFIG}: peft_type is '{kind}'; only LORA \(with or without DoRA\) is merged")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("bias", "all", "bias is 'all': it trained biases"),
            ("bias", "lora_only", "bias is 'lora_only': it trained biases"),
            ("lora_bias", True, "its LoRA has biases"),
            ("fan_in_fan_out", True, "fan_in_fan_out is 'True': .* Conv1D"),
            ("trainable_token_indices", [1, 2], "single rows of the embedding"),
            ("trainable_token_indices", {"embed_tokens": [1]}, "single rows of the embedding"),
            ("target_parameters", ["mlp.experts.gate_up_proj"], "experts of a mixture"),
            ("layer_replication", [[0, 1], [0, 1]], "it repeats layers"),
            ("alora_invocation_tokens", [5], "activated LoRA acts on a part of the tokens"),
            ("use_qalora", True, "QA-LoRA"),
            ("arrow_config", {"top_k": 2}, "arrow_config is .* may change what the adapter computes"),
            ("use_lora_of_tomorrow", True, "use_lora_of_tomorrow is 'True': it is not known here"),
        ],
    )
    def test_what_is_not_merged_is_refused_by_name(
        self, base: Checkpoint, plain: Path, key: str, value: object, message: str
    ) -> None:
        edit_json(plain / CONFIG, **{key: value})
        refused(base, plain, f"{CONFIG}: .*{message}.*{MERGE_IT}")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"peft_type": ...}, "peft_type is None"),
            ({"target_modules": ...}, "target_modules: Field required"),
            ({"target_modules": None}, r"target_modules: .* \(found None\)"),
            ({"target_modules": ["q_proj|v_proj"]}, "target_modules"),
            ({"target_modules": "q_proj("}, r"'q_proj\(' is not a regular expression"),
            ({"rank_pattern": {"*": 2}}, "is not a regular expression"),
            ({"r": 0}, r"r: .* \(found 0\)"),
            ({"r": "8"}, r"r: .* \(found '8'\)"),
            ({"lora_alpha": 0}, "lora_alpha: .* greater than 0"),
            ({"lora_alpha": float("nan")}, "lora_alpha"),
            ({"layers_to_transform": [-1]}, "layers_to_transform"),
            ({"layers_to_transform": [0], "layers_pattern": "h"}, "layers_pattern is 'h'; .* named 'layers'"),
            ({"layers_to_transform": [0], "target_modules": ".*q_proj"}, "needs target_modules to be a list"),
            ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which trained against a changed base model"),
            ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
            ({"init_lora_weights": "magic"}, "init_lora_weights is 'magic'; allowed: true, false, gaussian"),
            ({"task_type": "SEQ_CLS"}, "task_type is SEQ_CLS; an adapter of a chat model is CAUSAL_LM"),
        ],
    )
    def test_a_value_that_means_nothing_is_named(
        self, base: Checkpoint, plain: Path, changes: dict[str, Any], message: str
    ) -> None:
        edit_json(plain / CONFIG, **changes)
        refused(base, plain, message)

    def test_an_expression_that_never_ends_is_given_up(
        self, base: Checkpoint, plain: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(untrusted_patterns, "_SECONDS", 0.5)
        edit_json(plain / CONFIG, target_modules=r"((\w+\.?)+)+!")
        refused(base, plain, r"regular expressions take longer than 0.5 s to match; write the modules' names out")

    @pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000])
    def test_a_damaged_configuration_is_named(self, base: Checkpoint, plain: Path, content: bytes) -> None:
        (plain / CONFIG).write_bytes(content)
        refused(base, plain, f"{CONFIG} (is not valid JSON|holds a JSON list)")


class TestFolder:
    def test_pickled_weights_are_refused_with_the_reason_and_a_way_out(self, base: Checkpoint, plain: Path) -> None:
        (plain / WEIGHTS).rename(plain / "adapter_model.bin")
        refused(base, plain, r"only pickled weights \(adapter_model.bin\); a pickle runs code .*save_pretrained")

    def test_a_pickle_beside_safetensors_is_never_opened(self, base: Checkpoint, plain: Path) -> None:
        (plain / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
        assert apply_adapter(base, plain).adapter

    def test_a_folder_without_its_files_says_which(self, base: Checkpoint, plain: Path) -> None:
        (plain / WEIGHTS).unlink()
        refused(base, plain, f"has no {WEIGHTS}")
        (plain / CONFIG).unlink()
        refused(base, plain, f"has no {CONFIG}; expected a folder that peft's save_pretrained wrote")
        refused(base, plain / "nowhere", "is not a folder; an adapter is a folder with")

    def test_an_adapter_one_folder_down_is_pointed_at(self, base: Checkpoint, plain: Path) -> None:
        shutil.move(plain, plain.parent / "other")
        plain.mkdir()
        shutil.move(plain.parent / "other", plain / "second")
        refused(base, plain, r"has no adapter_config.json; .* the folder .*second has one")

    def test_a_damaged_file_of_weights_is_refused(self, base: Checkpoint, plain: Path) -> None:
        data = (plain / WEIGHTS).read_bytes()
        (plain / WEIGHTS).write_bytes(data[:-4])
        refused(base, plain, f"{WEIGHTS} is not an intact safetensors file")


class TestTensors:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (f"{Q0}.lora_A.weight", None, f"{Q0}.lora_A.weight is missing. The file is incomplete"),
            (f"{Q0}.lora_B.weight", None, f"{Q0}.lora_B.weight is missing"),
            (f"{Q0}.lora_A.weight", np.ones((4, 63), np.float32), r"lora_A.weight has shape \[4, 63\], \[4, 64\] is"),
            (f"{Q0}.lora_A.weight", np.ones((5, 64), np.float32), r"for another model, or its rank is not 4"),
            (f"{Q0}.lora_B.weight", np.ones((128, 4), np.float32), r"\[128, 4\], \[64, 4\] .* for another model"),
            (f"{Q0}.lora_A.weight", np.ones((4, 64), np.int32), "is I32; weights may be"),
            (f"{Q0}.lora_magnitude_vector", np.ones(64, np.float32), r"has no use in a LoRA of .*use_dora is false"),
            (f"{Q0}.base_layer.weight", np.ones((64, 64), np.float32), "base_layer.weight has no use in a LoRA"),
            (f"{Q0}.lora_A.default.weight", np.ones((4, 64), np.float32), "q_proj.lora_A.default, which .* not have"),
            (f"{Q0}.lora_C.weight", np.ones((4, 64), np.float32), "changes .*lora_C, which the model does not have"),
            (f"{Q0}.lora_B.bias", np.ones(64, np.float32), "lora_B.bias is no tensor of a LoRA adapter"),
            ("model.layers.0.self_attn.q_proj.lora_A.weight", np.ones((4, 64), np.float32), "no tensor of a LoRA"),
            (f"{LAYER0}self_attn.k_proj.lora_A.weight", np.ones((4, 64), np.float32), "k_proj neither in target_mod"),
            (f"{LAYER0}input_layernorm.weight", np.ones(64, np.float32), "nor in modules_to_save"),
            (
                "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
                np.ones((4, 64), np.float32),
                "layers.2.self_attn.q_proj, which the model does not have; the adapter is for another model",
            ),
            (
                f"{LAYER0}block_sparse_moe.experts.0.w1.lora_A.weight",
                np.ones((4, 64), np.float32),
                "for another model. It is of a mixture of experts",
            ),
            (f"{EMBEDDING}.weight", np.ones((322, 64), np.float32), r"\[322, 64\], \[320, 64\] .* tokens were added"),
            ("base_model.model.lm_head.weight", np.ones((321, 64), np.float32), "the vocabulary changed, which is not"),
        ],
    )
    def test_every_tensor_has_its_use_and_its_shape(
        self, base: Checkpoint, plain: Path, name: str, value: npt.NDArray[Any] | None, message: str
    ) -> None:
        edit_weights(plain, with_change(name, value))
        refused(base, plain, f"{WEIGHTS}: .*{message}")

    def test_a_module_without_its_pair_is_missed(self, base: Checkpoint, plain: Path) -> None:
        edit_weights(plain, lambda w: [w.pop(f"{Q0}.lora_{part}.weight") for part in "AB"])
        refused(base, plain, r"holds nothing for model.layers.0.self_attn.q_proj \(1 of 4 modules")

    def test_a_saved_module_is_missed(self, base: Checkpoint, dora: Path) -> None:
        edit_weights(dora, with_change(f"{EMBEDDING}.weight", None))
        refused(base, dora, "holds nothing for model.embed_tokens")

    def test_a_magnitude_is_missed_where_dora_needs_one(self, base: Checkpoint, dora: Path) -> None:
        edit_weights(dora, with_change(f"{Q0}.lora_magnitude_vector", None))
        refused(base, dora, f"{Q0}.lora_magnitude_vector is missing")

    def test_an_empty_file_is_refused(self, base: Checkpoint, plain: Path) -> None:
        save_file({}, plain / WEIGHTS)
        refused(base, plain, "holds no tensor at all")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_numbers_that_are_none_are_named_when_they_are_merged(
        self, base: Checkpoint, plain: Path, value: float
    ) -> None:
        edit_weights(plain, lambda w: w[f"{Q0}.lora_A.weight"].__setitem__((0, 0), value))
        tensors = apply_adapter(base, plain).tensors
        with pytest.raises(CheckpointError, match=f"{WEIGHTS}: {Q0}.lora_A.weight holds NaN or infinite"):
            tensors["model.layers.0.self_attn.q_proj.weight"].load()

    def test_a_product_beyond_float32_is_named_when_it_is_merged(self, base: Checkpoint, plain: Path) -> None:
        edit_weights(plain, lambda w: w.update({f"{Q0}.lora_A.weight": w[f"{Q0}.lora_A.weight"] * np.float32(1e38)}))
        edit_weights(plain, lambda w: w.update({f"{Q0}.lora_B.weight": w[f"{Q0}.lora_B.weight"] * np.float32(1e20)}))
        tensors = apply_adapter(base, plain).tensors
        with pytest.raises(CheckpointError, match=r"layers.0.self_attn.q_proj.weight with its LoRA is NaN or infinite"):
            tensors["model.layers.0.self_attn.q_proj.weight"].load()

    def test_an_adapter_of_a_wider_model_says_so(self, base: Checkpoint, tmp_path: Path) -> None:
        wider = make_mistral(tmp_path / "wider", hidden_size=96, num_hidden_layers=1)
        train(wider, tmp_path / "lora", target_modules=["q_proj"])
        refused(
            base, tmp_path / "lora", r"has shape \[4, 96\], \[4, 64\] is expected: the adapter is for another model"
        )

    def test_an_adapter_of_a_changed_vocabulary_says_so(self, base: Checkpoint, tmp_path: Path) -> None:
        more = make_mistral(tmp_path / "more", vocab_size=322)
        train(more, tmp_path / "lora", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
        refused(base, tmp_path / "lora", "the vocabulary changed, .*resize_token_embeddings, merge_and_unload")
        train(more, tmp_path / "other_lora", target_modules=["embed_tokens"])
        refused(base, tmp_path / "other_lora", "the vocabulary changed")


def test_the_configuration_and_the_file_must_agree_on_the_rank(base: Checkpoint, plain: Path) -> None:
    config = json.loads((plain / CONFIG).read_bytes())
    assert config["r"] == 4
    edit_json(plain / CONFIG, r=8)
    refused(base, plain, r"lora_A.weight has shape \[4, .*\[8, .* is expected.* its rank is not 8")
