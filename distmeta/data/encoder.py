"""A frozen encoder that a user's function builds: its features of pictures, and the digest that identifies it.

``FILE:FUNCTION`` names the function. It takes nothing and returns an ``nn.Module`` from floats ``[B, C, H, W]`` in 0..1
to features ``[B, D]``; normalisation and resizing belong into its ``forward``::

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = pretrained_network()

        def forward(self, x):
            return self.body((x - 0.45) / 0.225).mean((2, 3))

    def encoder():
        return Encoder()
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.config import did_you_mean
from distmeta.data.shard_file import Images, floats
from distmeta.errors import ConfigError, DistmetaError, ModelContractError, line_of
from distmeta.files import without_bytecode


class FrozenEncoder:
    """A network in evaluation mode whose parameters learn nothing. Make one with :meth:`load`.

    Attributes:
        name: ``file.py:function``, without the folder.
        weights_sha256: :func:`weights_digest` of its parameters and buffers.
        source_sha256: sha256 of the file that defines it.
    """

    def __init__(self, name: str, module: Any, source_sha256: str, device: str) -> None:
        self.name = name
        self.source_sha256 = source_sha256
        self.weights_sha256 = weights_digest(module)
        self._module = module
        self._device = torch.device(device)

    @staticmethod
    def load(encoder: str, device: str = "cpu") -> FrozenEncoder:
        """Run a file, call its function, and freeze what it returns.

        torch's random numbers are seeded first, so that weights which the function draws are the same in every process.

        Args:
            encoder: ``FILE:FUNCTION``.
            device: where the network computes, ``"cpu"`` or ``"cuda"``.

        Raises:
            ConfigError: the file or the function is absent or fails, or there is no such device.
            ModelContractError: the function returns something else than a network.
        """
        path, function = _parts(encoder)
        name = f"{path.name}:{function}"
        source = path.read_bytes()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = _built(path, function)
        for method in ("named_parameters", "named_buffers", "eval", "to"):
            if not callable(module) or not callable(getattr(module, method, None)):
                raise ModelContractError(
                    f"{name} returned a {type(module).__name__}; expected an nn.Module that maps pictures "
                    "[B, C, H, W] to features [B, D]. Return the network itself, built and with its weights loaded."
                )
        try:
            module = module.to(torch.device(device)).eval()
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise ConfigError(
                f"The encoder cannot be put on device {device!r}: {_first_line(error)}. Give --device cpu, or cuda on "
                "a machine with a GPU."
            ) from error
        for _, parameter in module.named_parameters():
            parameter.requires_grad_(False)
        return FrozenEncoder(name, module, hashlib.sha256(source).hexdigest(), device)

    def features(self, images: Images) -> npt.NDArray[np.float32]:
        """Features ``[B, D]`` of one batch of images ``[B, ...]``, as a dataset stores them.

        Raises:
            ModelContractError: the network fails, or returns something else than one finite vector per image.
        """
        x = floats(images).to(self._device)
        try:
            with torch.no_grad():
                output = self._module(x)
        except DistmetaError:
            raise
        except Exception as error:
            raise ModelContractError(
                f"{self.name} fails on pictures {list(x.shape)} in 0..1: {type(error).__name__}: {_first_line(error)} "
                f"({line_of(error)}). Convert them in its forward(), or build the dataset in the size and channels "
                "that it takes."
            ) from error
        return self._checked(output, len(images))

    def unchanged(self) -> bool:
        """Return whether parameters and buffers are still those of :attr:`weights_sha256`."""
        return weights_digest(self._module) == self.weights_sha256

    def _checked(self, output: object, images: int) -> npt.NDArray[np.float32]:
        if not isinstance(output, torch.Tensor):
            raise ModelContractError(
                f"{self.name} returned a {type(output).__name__}; expected one tensor [{images}, D]. Return the "
                "features alone, such as output.last_hidden_state[:, 0]."
            )
        shape = list(output.shape)
        if output.dim() == 4:
            raise ModelContractError(
                f"{self.name} returned maps of features {shape}; expected [{images}, D], one vector per picture. "
                "Average them in its forward(): return x.mean((2, 3))."
            )
        if output.dim() != 2 or shape[0] != images or not shape[1] or not output.is_floating_point():
            raise ModelContractError(
                f"{self.name} returned {output.dtype} {shape} for {images} pictures; expected floats [{images}, D], "
                "one vector per picture. Return x.flatten(1), say."
            )
        if not bool(torch.isfinite(output).all()):
            raise ModelContractError(
                f"{self.name} returned NaN or infinite features; expected finite numbers. Look at its weights and at "
                "the scale of its inputs: pictures are floats in 0..1."
            )
        found: npt.NDArray[np.float32] = output.float().cpu().contiguous().numpy()
        return found


def weights_digest(module: Any) -> str:
    """sha256 over the parameters and buffers of an ``nn.Module``, in its order: names, types, shapes and bytes.

    Example:
        >>> weights_digest(torch.nn.Identity())[:8]  # the sha256 of nothing
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def same_bits(threads: int) -> Iterator[None]:
    """Compute with ``threads`` CPU threads and deterministic kernels; the former settings are back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)


def _parts(encoder: str) -> tuple[Path, str]:
    file, colon, function = encoder.rpartition(":")
    if not colon or not file or not function.isidentifier():
        raise ConfigError(
            f"--encoder {encoder!r} is not FILE:FUNCTION; expected a Python file and the function in it that returns "
            "the network, such as encoders/mine.py:encoder."
        )
    path = Path(file).absolute()
    if not os.path.isfile(path):
        raise ConfigError(f"--encoder: there is no file {path}. Correct the path before the colon.")
    return path, function


def _built(path: Path, function: str) -> Any:
    name = f"distmeta_encoder_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; expected one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # for the modules beside it
    try:
        with without_bytecode():
            spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if not callable(make):
            near = did_you_mean(function, [n for n, value in vars(module).items() if callable(value)])
            raise ConfigError(
                f"{path} defines no function {function!r}.{near} Give FILE:FUNCTION, a function that takes nothing and "
                "returns the network."
            )
        return make()
    except DistmetaError:
        raise
    except Exception as error:
        raise ConfigError(
            f"The encoder {path.name}:{function} fails: {type(error).__name__}: {_first_line(error)} "
            f"({line_of(error)}). Fix that line; the function takes no arguments."
        ) from error
    finally:
        sys.path.remove(str(path.parent))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")
