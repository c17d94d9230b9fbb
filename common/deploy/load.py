"""Loads trained detectors from their checkpoints, which hold tensors and plain values, and never run code."""

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
from common.importing import import_class
from common.module import OneClassModule


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running any code in it; tensors are read from the file when they are used.

    Raises:
        UnreadableError: The file is damaged, not a checkpoint of this package, or holds pickled objects.
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
    except Exception as error:  # of many types; some messages are empty, some advise to run code from the file
        reason = "it is damaged, or a file of another kind"
        if is_zipfile(path) and isinstance(error, UnpicklingError):
            reason = "it holds objects besides tensors and plain values, which are never run"
        raise UnreadableError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(contents, dict) or "method" not in contents:
        raise UnreadableError(f"{path} is not a checkpoint of this package")
    return contents


@dataclass(frozen=True)
class Detector:
    """A trained module in eval mode, with the preprocessing of its inputs.

    Attributes:
        module: Scores preprocessed samples.
        stored: ``(C, H, W)`` of images before the preprocessing, or ``(F,)`` of the rows of a table.
        preprocessing: Converts ``(B, *stored)`` samples, with the type of the training samples, to inputs of the module.
        decoding: Keyword arguments of :class:`common.data.images.ImageFiles` that decode files to stored images.
    """

    module: OneClassModule
    stored: tuple[int, ...]
    preprocessing: Preprocessing
    decoding: Mapping[str, Any]

    def scores(self, images: Tensor) -> Tensor:
        """Scores ``(B, *stored)`` samples: ``(B,)`` float64 on the CPU, higher = more anomalous."""
        with torch.inference_mode():
            return self.module(self.preprocessing(images).to(self.module.device)).double().cpu()


def load_detector(path: Path, device: torch.device | str = "cpu") -> Detector:
    """Loads the detector from a checkpoint of ``oneclass fit`` or of an experiment.

    Neither the data nor the pretrained weights of a backbone are needed.

    Raises:
        InputError: The checkpoint is missing or incomplete, or its method is not installed.
    """
    contents = load_checkpoint(path)
    try:
        cls = import_class(contents.get("class_path", ""))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    try:
        arguments = {key: value for key, value in contents["hyper_parameters"].items() if key in cls.arguments()}
        module = cls(**(arguments | dict(cls.offline_kwargs)))
        module.on_load_checkpoint(contents)  # first, as Lightning does: it may make room for the state
        module.load_state_dict(contents["state_dict"])
        module.refuse_early_end()
        data_state = contents[OneClassDataModule.__qualname__]
        stored, preprocessing = tuple(data_state["stored"]), Preprocessing(**data_state["preprocessing"])
        decoding = {"depth": "uint8", **data_state.get("decoding", {})}  # earlier checkpoints have none
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is not a complete checkpoint of {cls.__qualname__}: {' '.join(str(error).split())[:300]}"
        ) from error
    try:
        module.to(device)
    except (AssertionError, RuntimeError) as error:  # PyTorch without CUDA raises AssertionError
        raise InputError(f"no device '{device}' here: {str(error).partition(chr(10))[0]}") from error
    return Detector(module.eval().to(memory_format=torch.channels_last), stored, preprocessing, decoding)
