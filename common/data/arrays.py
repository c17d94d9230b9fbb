"""Data sets from arrays in memory or in ``.npz`` files, and the checks that every data set passes."""

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from common.data.images import ImageData, Images
from common.errors import InputError
from common.files import whole


def image_data(
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
) -> ImageData:
    """Makes a data set from arrays of images or table rows and their labels.

    Args:
        X_train: ``(N, H, W)`` or ``(N, C, H, W)`` images with 1 or 3 channels, or a table ``(N, F)``; ``uint8`` or any other
            finite numbers.
        y_train: ``(N,)`` labels, integers or text.
        X_test: The official test set, with samples of the same shape; none by default.
        y_test: Its labels.
        classes: Names of the classes; by default the labels in ascending order. Integer labels index the given names
            from 0.

    Raises:
        InputError: The arrays do not match, or have another shape or type.

    Example:
        >>> data = image_data(np.zeros((3, 8, 8)), ["good", "good", "bad"])
        >>> tuple(data.images.shape), data.classes, data.targets.tolist(), data.official_test.any()
        ((3, 1, 8, 8), ('bad', 'good'), [1, 1, 0], np.False_)
    """
    if (X_test is None) != (y_test is None):
        raise InputError("X_test and y_test belong together: give both or neither")
    images, labels = [_samples(X_train, "X_train")], [_labels(y_train, "y_train")]
    if X_test is not None and y_test is not None:
        images.append(_samples(X_test, "X_test"))
        labels.append(_labels(y_test, "y_test"))
    for samples, own in zip(images, labels, strict=True):
        if len(samples) != len(own):
            raise InputError(f"there are {len(samples)} samples but {len(own)} labels: give one label for each sample")
    train, test = images[0], images[-1]
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise InputError(f"X_train and X_test differ: {train.shape[1:]} {train.dtype} and {test.shape[1:]} {test.dtype}")
    if labels[0].dtype.kind != labels[-1].dtype.kind:
        raise InputError(f"y_train and y_test must have the same type, not {labels[0].dtype} and {labels[-1].dtype}")
    targets, names = _targets(np.concatenate(labels), classes)
    official_test = np.arange(len(targets)) >= len(train)
    return checked(ImageData(torch.from_numpy(np.concatenate(images)), targets, official_test, names))


def save_arrays(
    path: Path | str,
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Writes the arrays of :func:`image_data` to a ``.npz`` file, whose path can be given as a data set.

    Raises:
        InputError: :func:`image_data` refuses the arrays, or the path has another ending or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_arrays(Path(folder, "my.npz"), np.zeros((4, 3)), [0, 0, 1, 1])
        ...     load_arrays(Path(folder, "my.npz")).images.shape
        torch.Size([4, 3])
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"{path} must end in .npz")
    data = image_data(X_train, y_train, X_test, y_test, classes)
    X, y, test = np.asarray(data.images), data.targets, data.official_test
    arrays = {"X": X, "y": y}
    if test.any():
        arrays = {"X_train": X[~test], "y_train": y[~test], "X_test": X[test], "y_test": y[test]}
    arrays["classes"] = np.array(data.classes)
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> ImageData:
    """Loads a ``.npz`` file with ``X_train, y_train, X_test, y_test``, or with ``X, y`` if there is no official test set.

    An optional array ``classes`` names the classes. Raises InputError if an array is missing or does not match the others.
    """
    if not path.is_file():
        raise InputError(f"no data set {path}: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is not a .npz of plain arrays: {reason}") from error
    names = ("X", "y") if {"X", "y"} <= arrays.keys() else ("X_train", "y_train", "X_test", "y_test")
    if missing := [name for name in names if name not in arrays]:
        needed = "give X_train, y_train, X_test and y_test, or X and y"
        raise InputError(f"{path} lacks {', '.join(missing)}: {needed}")
    classes = None
    try:
        if "classes" in arrays:
            _refuse_bytes(arrays["classes"], "classes")
            classes = arrays["classes"].ravel().tolist()
        return image_data(*(arrays[name] for name in names), classes=classes)  # type: ignore[misc]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def as_stored(samples: NDArray[np.generic]) -> NDArray[np.generic]:
    """Converts numbers to arrays that PyTorch can share: ``uint8``, ``float32`` or ``float64``, contiguous and writeable.

    Example:
        >>> [as_stored(np.zeros(2, dtype)).dtype.name for dtype in (np.uint8, np.float16, ">f4", bool)]
        ['uint8', 'float32', 'float32', 'float64']
    """
    kept = {"uint8": np.uint8, "float16": np.float32, "float32": np.float32}
    return np.require(samples, kept.get(samples.dtype.name, np.float64), ["C", "W"])


def is_channels_last(shape: Sequence[int]) -> bool:
    """Whether a shape looks like ``(N, H, W, C)`` images; ``(N, C, L, 1)`` is taken for signals of several channels.

    Example:
        >>> is_channels_last((100, 32, 48, 3)), is_channels_last((100, 3, 32, 48)), is_channels_last((100, 12, 64, 1))
        (True, False, False)
    """
    _, height, width, last = shape
    return height > 4 and (last in {3, 4} or (last == 1 and height == width))


def checked(data: object) -> ImageData:
    """Checks that the parts of a data set match, and converts lists to arrays; raises InputError if they do not match."""
    if not isinstance(data, ImageData):
        raise InputError(f"a {type(data).__name__} is not a data set: give an ImageData, which common.data.image_data makes")
    images: Images = data.images
    if isinstance(images, np.ndarray | Tensor):
        images = torch.from_numpy(_samples(images, "images"))
    targets, official_test = np.asarray(data.targets), np.asarray(data.official_test)
    n, classes = images.shape[0], tuple(map(str, data.classes))
    if targets.shape != (n,) or official_test.shape != (n,):
        raise InputError(f"targets and official_test must have the shape ({n},), not {targets.shape} and {official_test.shape}")
    if targets.dtype.kind not in "iu" or not 0 <= targets.min() <= targets.max() < len(classes):
        raise InputError(f"targets must be class numbers from 0 to {len(classes) - 1}, one for each class name")
    if len(set(classes)) < len(classes):
        raise InputError(f"class names must differ: {', '.join(classes)}")
    groups = None if data.groups is None else np.asarray(data.groups)
    if groups is not None:
        _check_groups(groups, targets, official_test)
        groups = groups.astype(np.int64)
    return ImageData(images, targets.astype(np.int64), official_test.astype(np.bool_), classes, groups)


def _check_groups(groups: NDArray[np.generic], targets: NDArray[np.generic], official_test: NDArray[np.generic]) -> None:
    if groups.shape != targets.shape or groups.dtype.kind not in "iu":
        raise InputError(f"groups must be integers, one for each of {len(targets)} images, not {groups.shape} {groups.dtype}")
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    for name, values in (("class", targets), ("official part", official_test)):
        if (values != values[first][number]).any():
            raise InputError(f"the images of a group must share their {name}")


def _samples(X: ArrayLike | Tensor, name: str) -> NDArray[np.generic]:
    """``(N, C, H, W)`` images or ``(N, F)`` rows, with a type of :func:`as_stored`."""
    samples = np.asarray(X)
    if samples.dtype.kind not in "biuf":
        raise InputError(f"{name} must hold numbers, not {samples.dtype}")
    samples = as_stored(samples)
    if samples.ndim == 3:
        samples = samples[:, None]
    if samples.ndim not in {2, 4} or not samples.size:
        raise InputError(f"{name} must be (N, H, W), (N, C, H, W) or (N, F), not {np.shape(X)}")
    if samples.ndim == 4 and samples.shape[1] not in {1, 3}:
        hint = ": channels come first, try X.transpose(0, 3, 1, 2)" if is_channels_last(samples.shape) else ""
        raise InputError(f"{name} must have 1 or 3 channels, not {samples.shape[1]}{hint}")
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise InputError(f"{name} holds NaN or infinity")
    return samples


def _labels(y: ArrayLike, name: str) -> NDArray[np.generic]:
    """``(N,)`` int64 or text."""
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise InputError(f"{name} must be (N,), one label for each sample, not {labels.shape}")
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels):
        return labels.astype(np.str_)  # a column of pandas
    _refuse_bytes(labels, name)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InputError(f"{name} holds NaN or infinity: give every sample a label")
    if labels.dtype.kind not in "biuf" or (labels != np.rint(labels)).any():
        raise InputError(f"{name} must hold integers or text, not {labels.dtype}")
    return labels.astype(np.int64)


def _refuse_bytes(names: NDArray[np.generic], name: str) -> None:
    if names.dtype.kind == "S":
        raise InputError(f"{name} must hold text, not bytes: try {name}.astype(str)")


def _targets(labels: NDArray[np.generic], classes: Sequence[str] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The class number of each label, and the classes' names."""
    values, numbers = np.unique(labels, return_inverse=True)
    found = [str(value) for value in values]
    names = found
    if classes is not None:
        names = [str(name) for name in classes]
    if classes is not None and labels.dtype.kind != "U":
        return labels.astype(np.int64), tuple(names)
    if unnamed := sorted(set(found) - set(names)):
        raise InputError(f"classes must name every label, and {unnamed[0]} is missing: {', '.join(names)}")
    return np.array([names.index(value) for value in found])[numbers], tuple(names)
