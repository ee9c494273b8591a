"""A recipe: what `build --recipe NAME` does. The records; `reading` makes them from YAML.

Precision of every part, how it is come by, and what the gate asks of the result. Knows no
checkpoint, no engine and no file.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hermes_deploy.targets import Cache, Precision, Target

Method = Literal["none", "rtn", "awq", "smoothquant"]
Head = Literal["activation", "fp32", "fp16", "int4", "int8"]
KeysValues = Literal["activation", "int8"]

METHODS: dict[Precision, tuple[Method, ...]] = {
    "fp32": ("none",),
    "fp16": ("none",),
    "int4": ("rtn", "awq"),
    "int8": ("rtn", "smoothquant"),
    "fp8": ("rtn",),
    "w4a8": ("rtn", "awq"),
    "nvfp4": ("rtn",),
}
"""How the linears of each precision can be come by."""

CALIBRATED: tuple[Precision, ...] = ("int8", "fp8", "w4a8", "nvfp4")
"""Precisions whose activations have static scales, so that they cannot be had without chats."""

_SEARCHES: tuple[Method, ...] = ("awq", "smoothquant")
_BLOCKED: tuple[str, ...] = ("int4", "w4a8")


class _Frozen(BaseModel):
    # strict: `max_slots: yes` is not 1; and a gate of .inf is none
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GateThresholds(_Frozen):
    """The build fails over any of these, each against the unquantized fp32 reference.

    `max_kl`: mean KL(reference || candidate) over held-out positions, nats.
    `min_top1`: share of positions where both pick the same token, 0..1.
    `min_top1_confident`: the same among positions where the reference's best logit is more than 0.5
    above its second; None = not asked.
    `max_perplexity_ratio`: candidate perplexity / reference perplexity on the same text.
    `max_tensor_error`: worst relative error ||dequantized - source|| / ||source|| of any
    head-sized group of any linear; catches damage too local to move an average.
    `max_kernels_kl`: mean KL of the graph as it runs from its own weights in the reference decoder; None =
    not asked. Catches a graph that computes something else, which 4 bits leave room for in `max_kl`.
    `max_cache_misfit`: how many times further 8-bit codes move the keys or values of the worst kv head than
    codes would whose scales were made for these very texts; None = not asked. Catches a scale that is
    too wide or too narrow for one head, which averages forgive.
    """

    max_kl: float = Field(gt=0)
    min_top1: float = Field(gt=0, le=1)
    min_top1_confident: float | None = Field(default=None, gt=0, le=1)
    max_perplexity_ratio: float = Field(gt=0)
    max_tensor_error: float = Field(gt=0)
    max_kernels_kl: float | None = Field(default=None, gt=0)
    max_cache_misfit: float | None = Field(default=None, gt=0)


SMALL_MODEL = 1_000_000_000
"""Parameters."""


class Recipe(_Frozen):
    """`linear` is the precision of every matrix in the decoder, `head` of the output head ("activation": the
    dtype of the target's activations), `embedding` of the table of tokens, `kv` of the keys and values
    that are kept ("activation" as above; "int8" with a static scale for each channel, from chats).

    `method`: how the weights are come by. "rtn" rounds to nearest (weighted by what the calibration
    chats activate, where there are any); "awq" and "smoothquant" search scales over them first.

    `block_size` along K of blocked weights, None = the first of the target's sizes that divides.

    `small_model_gate` replaces `gate` for models under SMALL_MODEL parameters, which lose far more
    in few bits: one threshold for both would let a damaged 7B pass.

    `max_context` in tokens and `max_slots` in concurrent chats are defaults that `build` flags
    override; the built artifact carries the values and `serve` may only lower them.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    description: str = Field(min_length=1, max_length=500)
    linear: Precision
    method: Method
    block_size: int | None = Field(default=None, gt=0)
    head: Head
    embedding: Literal["fp32", "fp16"] = "fp16"
    kv: KeysValues = "activation"
    calibration_chats: int = Field(default=0, ge=0, le=10_000)
    max_context: int = Field(default=2048, ge=16, le=1 << 20)
    max_slots: int = Field(default=8, ge=1, le=1024)
    gate: GateThresholds
    small_model_gate: GateThresholds | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.method not in METHODS[self.linear]:
            raise ValueError(f"{self.linear} linears are come by with method {' or '.join(METHODS[self.linear])}")
        needs = self.linear in CALIBRATED or self.method in _SEARCHES
        if needs and not self.calibration_chats:
            raise ValueError(f"{self.linear} with method {self.method} needs calibration_chats of 1 or more")
        if self.kv == "int8" and not self.calibration_chats:
            raise ValueError("a kv of int8 has scales from chats; it needs calibration_chats of 1 or more")
        if self.method == "none" and self.kv == "activation" and self.calibration_chats:
            raise ValueError("calibration_chats have no effect with method none")
        for gate in (self.gate, self.small_model_gate):
            if gate is not None and (gate.max_cache_misfit is None) != (self.kv == "activation"):
                raise ValueError("max_cache_misfit is asked of a kv of int8, where it must be given, and of no other")
        if self.block_size is not None and not self.blocked:
            raise ValueError(f"block_size has no effect: neither {self.linear} linears nor the head are in blocks")
        return self

    @property
    def blocked(self) -> bool:
        """Does `block_size` say anything."""
        return self.linear in _BLOCKED or self.head in ("int4", "int8")

    def thresholds(self, parameters: int) -> GateThresholds:
        """What the gate asks of a model with that many parameters."""
        if self.small_model_gate is not None and parameters < SMALL_MODEL:
            return self.small_model_gate
        return self.gate

    def head_on(self, target: Target) -> str:
        """The precision of the head on `target`."""
        return target.activation if self.head == "activation" else self.head

    def cache_on(self, target: Target) -> Cache:
        """The dtype of keys and values on `target`."""
        return target.activation if self.kv == "activation" else self.kv

    def trouble_on(self, target: Target) -> str | None:
        """Why `target` cannot take this recipe, in words; None when it can."""
        if self.linear not in target.precisions:
            return f"it has no {self.linear} kernels"
        if self.head_on(target) not in target.heads:
            return f"a head in {self.head} is not one of its ({', '.join(target.heads)})"
        if self.cache_on(target) not in target.caches:
            return f"a cache in {self.kv} is not one of its ({', '.join(target.caches)}): {target.no_int8_cache}"
        if self.block_size is not None and self.block_size not in target.block_sizes:
            sizes = ", ".join(map(str, sorted(target.block_sizes)))
            return f"blocks of {self.block_size} are not among its block sizes ({sizes})"
        return None
