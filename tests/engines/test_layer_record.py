"""Reading TensorRT's layer record: what counts as a low-precision GEMM and what does not."""

from __future__ import annotations

from hermes_deploy.engines.layers import Linear, fused_attention, gemms, read_record

FORMAT = "Strides: [1], StrideOrder: [0]"


def _operand(dtype: str, dimensions: str) -> str:
    layout = "Format: (Linear) Row major linear format"
    return f"{{ Name: t, Dimensions: [{dimensions}], {FORMAT}, Datatype: {dtype}, {layout} }}"


def _line(inputs: list[str], constants: list[str], node: str, tactic: str = "t", kind: str = "gemm") -> str:
    return (
        f"Name: kernel_myl0_1, LayerType: {kind}, "
        f"Inputs: [ {', '.join(inputs)}], Constants: [ {', '.join(constants)}], "
        f"Outputs: [ {_operand('Half', '1,-1,512')}], TacticName: {tactic}, StreamId: 0, Metadata: [ONNX Layer: {node}]"
    )


HALF = _operand("Half", "1,-1,256")
LINEAR = Linear("[ONNX Layer: qkv]", "int4", 256 * 512)


def _count(line: str, linear: Linear = LINEAR) -> int:
    return len(gemms(read_record("Layers:\n" + line), linear))


def test_a_kernel_that_reads_int4_weights_and_an_activation_counts() -> None:
    assert _count(_line([HALF], [_operand("Int4", "1,256,512"), _operand("Half", "1,2,512")], "qkv")) == 1


def test_a_kernel_that_only_widens_int4_weights_does_not_count() -> None:
    assert _count(_line([], [_operand("Int4", "256,512")], "qkv", kind="kgen")) == 0


def test_a_gemm_over_widened_weights_does_not_count() -> None:
    assert _count(_line([HALF, _operand("Half", "1,256,512")], [_operand("Float", "1")], "qkv")) == 0


def test_a_kernel_of_another_node_does_not_count() -> None:
    assert _count(_line([HALF], [_operand("Int4", "1,256,512")], "qkv_2")) == 0


def test_fp8_weights_count_only_with_an_fp8_activation() -> None:
    linear = Linear("[ONNX Layer: qkv]", "fp8", 256 * 512, activation="fp8")
    weights = _operand("FP8", "256,512")
    assert _count(_line([_operand("FP8", "-1,256")], [weights], "qkv"), linear) == 1
    assert _count(_line([HALF], [weights], "qkv"), linear) == 0


def test_attention_kernels_are_counted_by_name_without_their_hash() -> None:
    lines = [
        _line([HALF], [], "attention_0", "_gemm_mha_v2_0x3c6d0652b100"),
        _line([HALF], [], "attention_1", "_gemm_mha_v2_0x4aea445b91a2"),
        _line([HALF], [], "attention_0", "_gemv_mha_v1_0x4609d0853c_vec"),
        _line([HALF], [], "attention_0", "__myl_ReshReplReshMove_0xbd33"),
    ]
    assert fused_attention(read_record("\n".join(lines))) == {"gemm_mha_v2": 2, "gemv_mha_v1": 1}


def test_the_tensors_after_the_layers_are_not_kernels() -> None:
    text = f"Layers:\n{_line([HALF], [], 'a')}\n\nI/O Tensors:\nName: x, IOMode: Input, DataType: Int64\n"
    assert len(read_record(text)) == 1
