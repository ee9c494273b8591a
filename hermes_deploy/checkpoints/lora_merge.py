"""W -> W + scaling * (B @ A), when it is loaded and not before; the formula of peft's `merge_and_unload`.

LoRA: https://arxiv.org/abs/2106.09685. DoRA (a magnitude is there): https://arxiv.org/abs/2402.09353.
Computed in float32 whatever the files hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.errors import CheckpointError


@dataclass(frozen=True)
class Lora:
    """What one module gets. A linear has `a` [rank, in] and `b` [out, rank], and `magnitude` [out] with DoRA.

    Of an embedding peft keeps the transpose: `a` [rank, vocabulary], `b` [hidden, rank], `magnitude` [hidden].
    """

    a: LazyTensor
    b: LazyTensor
    magnitude: LazyTensor | None
    scaling: float
    embedding: bool

    def merge_into(self, base: LazyTensor, where: str) -> LazyTensor:
        """A float32 tensor of `base`'s name and shape. `where` names the adapter's file in messages."""

        def load() -> npt.NDArray[Any]:
            merged = self._change()
            merged += base.load()
            if self.magnitude is not None:
                merged *= self._direction(merged)
            # minimum and maximum carry NaN and need no temporary of the tensor's size
            if not (np.isfinite(merged.min()) and np.isfinite(merged.max())):
                raise CheckpointError(
                    f"{where}: {base.name} with its LoRA is NaN or infinite; the adapter is damaged or of another model"
                )
            return merged

        return LazyTensor(base.name, base.shape, "F32", load)

    def _change(self) -> npt.NDArray[np.float32]:
        # only finite numbers come in; what overflows is found in the sum
        with np.errstate(over="ignore", invalid="ignore"):
            a, b = self.a.float32(), self.b.float32()
            change: npt.NDArray[np.float32] = a.T @ b.T if self.embedding else b @ a
            change *= np.float32(self.scaling)
        return change

    def _direction(self, merged: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Factor of every output: its trained magnitude over the norm it has. peft's embeddings have one a column."""
        assert self.magnitude is not None
        axis = 0 if self.embedding else 1
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            factor: npt.NDArray[np.float32] = self.magnitude.float32() / np.linalg.norm(merged, axis=axis)
        return np.expand_dims(factor, axis)
