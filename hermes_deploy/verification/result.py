"""What the gate found, as records: judged, written as JSON into the artifact, and drawn in the report.

Frozen, and made of numbers and text alone. Validated when it is read back from JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hermes_deploy.errors import GateError
from hermes_deploy.verification.intervals import Interval
from hermes_deploy.verification.measures import Measures

WEIGHTS, KERNELS = "weights", "graph and kernels"
"""The stages of a Chain."""

Choice = tuple[str, float]
"""A token's text and its probability."""


@dataclass(frozen=True)
class Excerpt:
    """A held-out chat at the position where the two answers are furthest apart.

    `chat_kl` is the mean of the chat, `kl` that of the position, nats. `before` is the text that both
    had read, `after` what stood next in the chat; choices are what each would say, best first.
    """

    chat: int
    position: int
    chat_kl: float
    kl: float
    before: str
    after: str
    reference: tuple[Choice, ...]
    candidate: tuple[Choice, ...]


@dataclass(frozen=True)
class Divergence:
    """One prompt that the reference answered by itself, greedily, over `length` tokens.

    `at` is the first token (from 0) that the candidate would not have chosen, None when there is
    none: then all `length` tokens are equal. `shared` is the text before it, `rest` what the
    reference went on with; choices are those of both at that token.
    """

    prompt: str
    length: int
    at: int | None
    shared: str
    rest: str
    reference: tuple[Choice, ...]
    candidate: tuple[Choice, ...]


@dataclass(frozen=True)
class Step:
    """How far a stage is from the one before it: `kl` in nats, mean over positions; `logits`: the
    relative error of the logits, ||after - before|| / ||before||, both without their mean."""

    stage: str
    kl: float
    logits: float


@dataclass(frozen=True)
class CacheFit:
    """Of the worst kv head's keys or values: how many times further their 8-bit codes move them than codes
    would whose scales were made for the very texts that were read."""

    misfit: float
    where: str


@dataclass(frozen=True)
class Chain:
    """`steps` in order, from the checkpoint to the graph as it runs; `by_layer`: relative error of the
    residual stream after the embedding, after each layer, and of the last, normed state. `cache` is
    None where keys and values are kept as they are."""

    positions: int
    steps: tuple[Step, ...]
    by_layer: tuple[float, ...]
    cache: CacheFit | None = None

    @property
    def largest(self) -> Step:
        return max(self.steps, key=lambda step: step.kl)


@dataclass(frozen=True)
class GateResult:
    """`problems`: every measure over its threshold, in words; `passed` when there is none.

    `tensors_sha256` is the hash of the very file that ran; `reference` says in words what it was
    compared with; `worst_tensor` where `measures.tensor_error` was found. `intervals`: low and high
    end, 95 %, of the measures that are means over `chats`. `kl_histogram`: (lower edge in nats,
    positions) of each bin. `operators`: whose computed, "hermes" or "ONNX Runtime: why not hermes".
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    passed: bool
    target: str
    precision: str
    recipe: str
    reference: str
    measures: Measures
    intervals: dict[str, Interval]
    chats: int
    thresholds: dict[str, float]
    tensors_sha256: str
    worst_tensor: str
    problems: tuple[str, ...] = ()
    kl_histogram: tuple[tuple[float, int], ...] = ()
    chain: Chain | None = None
    worst: tuple[Excerpt, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    operators: str = ""

    def to_json(self) -> str:
        return _ADAPTER.dump_json(self, indent=1).decode("utf-8") + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> GateResult:
        """Raises GateError for what `to_json` did not write."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise GateError(f"a gate result cannot be read: {where}: {first['msg']}; build again") from None


_ADAPTER = TypeAdapter(GateResult)
