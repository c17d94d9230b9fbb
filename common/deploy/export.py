"""Exports a trained detector as an ONNX or ``torch.export`` program, which runs without this package."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.deploy.load import Detector, load_detector
from common.errors import InputError
from common.files import refuse_input, whole
from common.module import OneClassModule

Format = Literal["onnx", "torch"]
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4
METADATA = "oneclass.json"
ANY_BATCH = ({0: torch.export.Dim("batch", min=1)},)


class ChosenScore(nn.Module):
    """Wraps a module so that only its ``forward``, ``(B, *shape)`` to ``(B,)``, is exported."""

    def __init__(self, module: OneClassModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        """Computes the chosen score of the module."""
        score: Tensor = self.module(image)
        return score


def metadata(detector: Detector) -> dict[str, Any]:
    """Collects what a user of the exported program needs, as plain values.

    ``input`` is the shape of the float32 samples that the program takes, ``stored`` their shape before preprocessing.
    ``decoding`` has the arguments of :class:`common.data.images.ImageFiles` that decode files to stored samples, and
    ``preprocessing`` the fields of :class:`common.data.transforms.Preprocessing` that convert these to the input.
    ``threshold`` is the lowest score that counts as anomalous, or null if the checkpoint has none.
    """
    module, threshold = detector.module, float(detector.module.threshold)
    preprocessing = {}
    for name, value in vars(detector.preprocessing).items():
        preprocessing[name] = value.tolist() if isinstance(value, Tensor) else value
    return {
        "method": type(module).__qualname__,
        "score": module.hparams["score"],
        "threshold": threshold if np.isfinite(threshold) else None,
        "input": list(module.hparams["shape"]),
        "stored": list(detector.stored),
        "decoding": dict(detector.decoding),
        "preprocessing": preprocessing,
    }


def export(checkpoint: Path, format: Format, out: Path | None = None) -> Path:
    """Exports the detector of a checkpoint as a program from preprocessed images ``(B, C, H, W)`` to scores ``(B,)``, any B.

    The program is read back and run on random images. It is kept if it agrees with the module to 1e-4 of the largest score
    (or of 1, if all are smaller). It holds the :func:`metadata` as JSON: ONNX in the model's property ``oneclass``, a torch
    program in the extra file ``oneclass.json``.

    The format ``onnx`` needs the extra ``export``. By default ``out`` is the checkpoint with the ending ``.onnx`` or ``.pt2``.

    Raises:
        InputError: The checkpoint cannot be loaded, the format is unknown, a package is missing, the program differs from the
            module, or the file cannot be written.
    """
    if format not in get_args(Format):
        raise InputError(f"no format '{format}': choose from {', '.join(get_args(Format))}")
    detector = load_detector(checkpoint)
    out = out or checkpoint.with_suffix(SUFFIX[format])
    refuse_input(out, [checkpoint])
    write, read = {"onnx": (_write_onnx, _read_onnx), "torch": (_write_torch, _read_torch)}[format]
    net, shape = ChosenScore(detector.module).eval(), detector.module.hparams["shape"]
    with whole(out) as temporary:
        try:
            write(net, torch.rand(2, *shape), json.dumps(metadata(detector)), temporary)
            run = read(temporary)
        except ImportError as error:
            raise InputError(f"format '{format}' needs {error.name}: pip install -e '.[export]'") from error
        for n in (1, 3, 8):
            image = torch.rand(n, *shape, generator=torch.Generator().manual_seed(n))
            with torch.inference_mode():
                expected = net(image).double().numpy()
            difference = np.abs(run(image.numpy()) - expected).max() / max(1.0, np.abs(expected).max())
            if not difference <= TOLERANCE:
                raise InputError(f"the program's scores differ from the module's by {difference:.1e}: it was not written")
    return out


def program(net: ChosenScore, example: Tensor) -> torch.export.ExportedProgram:
    """Traces a program for any batch size from an example ``(B, *shape)`` of at least two samples."""
    return torch.export.export(net, (example,), dynamic_shapes=ANY_BATCH)


def _write_torch(net: ChosenScore, example: Tensor, description: str, path: Path) -> None:
    with path.open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensors that share memory, such as the counters of batch norm
        torch.export.save(program(net, example), file, extra_files={METADATA: description})


def _read_torch(path: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    with path.open("rb") as file:
        loaded = torch.export.load(file).module()
    return lambda images: loaded(torch.from_numpy(images)).detach().double().numpy()


def _write_onnx(net: ChosenScore, example: Tensor, description: str, temporary: Path) -> None:
    exported = torch.onnx.export(
        net, (example,), input_names=["image"], output_names=["score"], dynamic_shapes=ANY_BATCH, dynamo=True, verbose=False
    )
    assert exported is not None
    exported.model.metadata_props["oneclass"] = description
    exported.save(temporary)


def _read_onnx(path: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["score"], {"image": images})[0].astype(np.float64)
