"""Optimization profiles: the ranges of batch, sequence and rows that one engine takes.

A profile names the symbolic dimensions of the graph (`batch`, `seq`, `rows`), not its tensors, so
the same two profiles fit every decoder. Knows no TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hermes_deploy.errors import EngineError


@dataclass(frozen=True)
class Range:
    """Smallest, best and largest size of one dimension; kernels are chosen for `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise EngineError(
                f"a profile range must be 1 <= min <= opt <= max, found {self.min}, {self.opt}, {self.max}"
            )


@dataclass(frozen=True)
class Profile:
    """`dimensions`: symbolic dimension of the graph -> its range while this profile is active."""

    name: str
    dimensions: Mapping[str, Range]

    def shapes(self, tensor: str, shape: Sequence[int | str]) -> tuple[list[int], list[int], list[int]]:
        """min, opt and max shape of an input whose dynamic dimensions are names.

        Raises EngineError for a dimension that the profile does not know.
        """
        unknown = [d for d in shape if isinstance(d, str) and d not in self.dimensions]
        if unknown:
            raise EngineError(
                f"input {tensor!r} has the dynamic dimension {unknown[0]!r}, which profile {self.name!r} does not "
                f"size; it sizes: {', '.join(self.dimensions)}"
            )
        sizes = [self.dimensions[d] if isinstance(d, str) else Range(d, d, d) for d in shape]
        return [s.min for s in sizes], [s.opt for s in sizes], [s.max for s in sizes]


def serving_profiles(prefill_chunk: int, max_slots: int) -> tuple[Profile, Profile]:
    """What the token loop runs: `prefill` is one row of 1..chunk tokens, `decode` 1..slots rows of one token.

    Both ask for one row of logits per sequence. The cache length is static and needs no range.
    """
    one = Range(1, 1, 1)
    return (
        Profile("prefill", {"batch": one, "seq": Range(1, prefill_chunk, prefill_chunk), "rows": one}),
        Profile("decode", {"batch": Range(1, max_slots, max_slots), "seq": one, "rows": one}),
    )
