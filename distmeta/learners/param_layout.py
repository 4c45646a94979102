"""Named parameters as one flat vector: the wire format of parameters and gradients."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from distmeta.errors import ModelContractError
from distmeta.types import FloatArray, Params


@dataclass(frozen=True)
class ParamLayout:
    """How named parameters lie in one flat vector ``[P]``: the wire format of parameters and gradients.

    Args:
        names: parameter names, in order.
        shapes: one shape per name.
        dtype: the one floating point type of all of them, ``"float32"`` or ``"float64"``.

    Example:
        >>> layout = ParamLayout.of({"w": torch.ones(2, 2), "b": torch.zeros(1)})
        >>> layout.flatten({"w": torch.ones(2, 2), "b": torch.zeros(1)}).tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0]
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str

    @classmethod
    def of(cls, params: Params) -> ParamLayout:
        """The layout of ``params``.

        Raises:
            ModelContractError: the parameters have several types, or one that is not float32 or float64.
        """
        kinds = {str(p.dtype).removeprefix("torch.") for p in params.values()}
        if not params:
            raise ModelContractError(
                "The model has no parameter with requires_grad; there is nothing to meta-train. Unfreeze a layer, or "
                "put adapter() on the features of a frozen encoder."
            )
        if len(kinds) > 1 or not kinds <= {"float32", "float64"}:
            raise ModelContractError(
                f"The model's parameters have the types {', '.join(sorted(kinds))}; expected one of float32 or float64 "
                "for all. Call model.float() first."
            )
        return cls(tuple(params), tuple(tuple(p.shape) for p in params.values()), kinds.pop())

    @property
    def size(self) -> int:
        """P, the number of scalars."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch type of the vector."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def flatten(self, params: Params) -> FloatArray:
        """``params`` as one contiguous vector ``[P]`` on the CPU."""
        flat = torch.cat([params[name].detach().reshape(-1) for name in self.names])
        array: FloatArray = flat.cpu().numpy()
        return array

    def unflatten(self, vector: FloatArray, device: torch.device | str = "cpu") -> Params:
        """Named tensors on ``device``, a copy of ``vector`` (which may be read-only shared memory)."""
        flat = torch.from_numpy(np.array(vector, copy=True)).to(device)
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        parts = zip(self.names, torch.split(flat, sizes), self.shapes, strict=True)
        return {name: part.reshape(shape) for name, part, shape in parts}

    def sha256(self, vector: FloatArray) -> str:
        """Digest of a vector in this layout: names, shapes and little-endian bytes, in order of name."""
        params = self.unflatten(vector)
        digest = hashlib.sha256()
        for name in sorted(self.names):
            array = params[name].numpy()
            digest.update(f"{name}{array.shape}{self.dtype}".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()
