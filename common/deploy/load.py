"""Trained detectors, from their checkpoints: tensors and plain values, never code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from common.data import OneClassDataModule
from common.data.transforms import Preprocessing
from common.errors import InputError, UnreadableError
from common.module import OneClassModule, import_class


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, read without running any code in it; tensors are read from the file when they are used.

    Raises:
        UnreadableError: It is damaged, something else, or holds pickled objects.
        InputError: There is no such file, or it cannot be opened.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    try:
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any kind, some without a word, some with advice to run what is in the file
        reason = "it is damaged, or a file of another kind"
        if is_zipfile(path) and isinstance(error, UnpicklingError):
            reason = "it holds objects besides tensors and plain values, which are never run"
        raise UnreadableError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(contents, dict) or "method" not in contents:
        raise UnreadableError(f"{path} is not a checkpoint of this package")
    return contents


@dataclass(frozen=True)
class Detector:
    """A trained module, in eval mode, and how an image gets to it.

    Attributes:
        module: Scores preprocessed samples.
        stored: ``(C, H, W)`` of images before the preprocessing, ``(F,)`` of a table's rows.
        preprocessing: From ``(B, *stored)`` samples, uint8 or float as the training samples were, to what the module sees.
        decoding: How a file becomes a stored image, as keyword arguments of :class:`common.data.images.ImageFiles`.
    """

    module: OneClassModule
    stored: tuple[int, ...]
    preprocessing: Preprocessing
    decoding: Mapping[str, Any]

    def scores(self, images: Tensor) -> Tensor:
        """``(B,)`` float64 scores on the CPU, higher = more anomalous, of ``(B, *stored)`` samples."""
        with torch.inference_mode():
            return self.module(self.preprocessing(images).to(self.module.device)).double().cpu()


def load_detector(path: Path, device: torch.device | str = "cpu") -> Detector:
    """The detector that ``oneclass fit`` or an experiment has left in a checkpoint.

    Nothing else is needed: neither the data, nor a backbone's weights.

    Raises:
        InputError: No such checkpoint, a method that is not installed, or contents that do not belong together.
    """
    contents = load_checkpoint(path)
    try:
        cls = import_class(contents.get("class_path", ""))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    try:
        arguments = {key: value for key, value in contents["hyper_parameters"].items() if key in cls.argument_names()}
        module = cls(**(arguments | dict(cls.offline_kwargs)))
        module.load_state_dict(contents["state_dict"])
        module.on_load_checkpoint(contents)
        about = contents[OneClassDataModule.__qualname__]
        stored, preprocessing = tuple(about["stored"]), Preprocessing(**about["preprocessing"])
        decoding = {"depth": "uint8", **about.get("decoding", {})}  # earlier checkpoints have none
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} does not hold a whole {cls.__qualname__}: {str(error).splitlines()[0]}") from error
    try:
        module.to(device)
    except (AssertionError, RuntimeError) as error:  # PyTorch without CUDA asserts it
        raise InputError(f"no device '{device}' here: {str(error).partition(chr(10))[0]}") from error
    return Detector(module.eval().to(memory_format=torch.channels_last), stored, preprocessing, decoding)
