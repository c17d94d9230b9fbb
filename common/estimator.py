"""A scikit-learn outlier detector for every method of this package."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from pytorch_lightning import Trainer
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import Tags, check_random_state, check_scalar, gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from common.data import Preprocessing, ResidentLoader, Sample
from common.data.arrays import as_stored, is_channels_last
from common.data.transforms import height_and_width
from common.errors import InputError
from common.evaluation import quantile_threshold
from common.importing import import_class
from common.module import OneClassModule
from common.presets import Config, is_file, preset_path, read_config
from common.training.lightning import check_config
from common.training.process import chosen_device
from common.training.seeding import isolated
from common.training.watcher import Watcher


class OneClassEstimator(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn outlier detector that trains a method of this package.

    ``X`` is a table ``(N, F)``, for which the nets are dense, or images ``(N, H, W)`` or ``(N, C, H, W)``. It is scaled by
    :class:`common.data.Preprocessing`, like any data set.

    The signs are scikit-learn's: higher scores are more normal; outliers have a negative decision and the label -1. The last
    epoch is used, whatever the rule of the preset. Nothing is written to disk.

    Args:
        method: A package with ``configs/<preset>.yaml``, such as ``autoencoder``, or the path of a YAML file of your own.
        preset: Name of the package's YAML file. For tables ``<preset>.vectors.yaml`` is preferred if it exists, then
            ``<preset>.digits.yaml``.
        contamination: ``auto``: the threshold is the module's ``threshold_quantile`` of the scores of held-out samples, so
            about 5 % of new normal samples are called outliers. A share in (0, 0.5]: nothing is held out, and this share of
            the training samples is called outliers.
        val_fraction: The share that is held out for ``auto``, in (0, 1); by default that of the preset, or 0.1.
        max_epochs: Replaces the value of the preset.
        batch_size: Replaces the value of the preset; at least 2.
        device: ``cpu``, ``cuda`` or ``auto``; unpickled estimators are on the CPU.
        random_state: Seed of initial weights, batches, noise and held-out samples. None draws from NumPy's global state, as
            in scikit-learn; the global state of PyTorch is not changed.
        verbose: Whether to show Lightning's progress bar.
        **overrides: Arguments of the module, such as ``latent=4``; grid searches can vary them too.

    Attributes:
        module_: The trained :class:`~common.module.OneClassModule`, in eval mode and double precision, so that scores do not
            depend on the other samples of a batch.
        offset_: The negative threshold of the module; ``decision_function`` is ``score_samples`` minus this.
        shape_: Shape of a sample of ``X``.
        batch_size_: Batch size of training and scoring.
        n_features_in_: The length of the second axis of ``X``.

    Raises:
        InputError: The method, preset or argument is unknown, or the shape does not match; it is a ``ValueError``.
        ValueError: scikit-learn refuses the samples or parameters (``TypeError`` for a wrong type).
        NonFiniteLossError: The training diverged.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> detector = OneClassEstimator("autoencoder", latent=6, max_epochs=20, random_state=0).fit(X[y == 0][:150])
        >>> detector.predict(X[y == 4][:5])
        array([-1, -1, -1, -1, -1])
        >>> bool((detector.score_samples(X[y == 0]).mean() > detector.score_samples(X[y == 4])).all())
        True
    """

    def __init__(
        self,
        method: str,
        preset: str = "small",
        *,
        contamination: float | Literal["auto"] = "auto",
        val_fraction: float | None = None,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        device: str = "cpu",
        random_state: int | RandomState | None = None,
        verbose: bool = False,
        **overrides: Any,
    ) -> None:
        self.method = method
        self.preset = preset
        self.contamination = contamination
        self.val_fraction = val_fraction
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self._overrides = overrides

    def fit(self, X: ArrayLike, y: object = None) -> "OneClassEstimator":
        """Trains on at least 3 samples, all taken as normal; ``y`` is ignored."""
        samples = self._validated(X, reset=True)
        variants = ("vectors", "digits") if samples.ndim == 2 else ("digits",)
        config = read_config(preset_path(self.method if is_file(self.method) else f"{self.method}-{self.preset}", *variants))
        data, options = config["data"], {"max_epochs": 20} | config["trainer"]
        if self.max_epochs is not None:
            options["max_epochs"] = self.max_epochs
        check_scalar(options["max_epochs"], "max_epochs", Integral, min_val=1)
        batch_size = data.get("batch_size", 128) if self.batch_size is None else self.batch_size
        check_scalar(batch_size, "batch_size", Integral, min_val=2)
        random = check_random_state(self.random_state)
        held_out = self._held_out(len(samples), data.get("val_fraction", 0.1), random)

        self.shape_, self.batch_size_ = samples.shape[1:], int(batch_size)
        options["max_epochs"] = int(options["max_epochs"])
        train, size = samples[~held_out], data.get("image_size")
        given = {name: data[name] for name in ("normalization", "class_mean", "channels") if name in data}
        if size is not None:
            given["size"] = height_and_width(size)
        self._preprocessing = Preprocessing(**given).fit(_as_stored(train))
        with isolated(random.randint(2**31 - 1)), _silence():
            self.module_ = self._trained(train, config["model"], options)

        if self.contamination == "auto":
            scores, quantile = self._scores(samples[held_out]), self.module_.hparams["threshold_quantile"]
            self.module_.calibration = torch.from_numpy(np.sort(scores))
        else:
            scores, quantile = self._scores(samples), 1 - self.contamination
        self.module_.threshold.fill_(quantile_threshold(scores, quantile))
        self.offset_ = -self.module_.threshold.item()
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Returns the negative scores of the module, ``(N,)``: higher = more normal."""
        check_is_fitted(self)
        return -self._scores(self._validated(X, reset=False))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Returns :meth:`score_samples` minus ``offset_``, ``(N,)``: negative = outlier."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Returns ``(N,)`` labels: -1 for outliers and 1 for inliers."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns all parameters by name, including the given arguments of the module."""
        return super().get_params(deep) | self._overrides

    def set_params(self, **params: Any) -> "OneClassEstimator":
        """Sets parameters; names that the estimator does not have are arguments of the module."""
        own = {name: params[name] for name in super().get_params() if name in params}
        self._overrides = self._overrides | {name: value for name, value in params.items() if name not in own}
        return super().set_params(**own)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "module_" in state:
            state["module_"] = deepcopy(state["module_"]).cpu()
        return state

    def _validated(self, X: ArrayLike, reset: bool) -> NDArray[Any]:
        samples: NDArray[Any] = validate_data(self, X, reset=reset, allow_nd=True, ensure_min_samples=3 if reset else 1)
        if samples.ndim > 4:
            raise InputError(f"X must be (N, F), (N, H, W) or (N, C, H, W), not {samples.shape}: reshape it")
        if samples.ndim == 4 and is_channels_last(samples.shape):
            raise InputError(f"X has images of {samples.shape[1]} channels: channels come first, try X.transpose(0, 3, 1, 2)")
        if not reset and samples.shape[1:] != self.shape_:
            raise InputError(f"X has samples of the shape {samples.shape[1:]}: give {self.shape_}, as in fit")
        return samples

    def _scores(self, samples: NDArray[Any]) -> NDArray[np.float64]:
        module = self.module_
        with torch.inference_mode():
            scores = [module(x.to(module.device).double()) for x in self._inputs(samples)]
        return torch.cat(scores).cpu().numpy()

    def _held_out(self, n: int, val_fraction: float, random: RandomState) -> NDArray[np.bool_]:
        share = val_fraction if self.val_fraction is None else self.val_fraction
        check_scalar(share, "val_fraction", Real, min_val=0, max_val=1, include_boundaries="neither")
        if self.contamination == "auto":
            n_held_out = min(max(1, round(share * n)), n - 2)
        else:
            check_scalar(self.contamination, "contamination", Real, min_val=0, max_val=0.5, include_boundaries="right")
            n_held_out = 0
        return random.permutation(n) < n_held_out

    def _inputs(self, X: NDArray[Any]) -> Iterator[Tensor]:
        """Yields preprocessed batches."""
        for part in gen_batches(len(X), self.batch_size_):
            yield self._preprocessing(_as_stored(X[part]))

    def _trained(self, X: NDArray[Any], model: Config, options: Config) -> OneClassModule:
        cls = import_class(model["class_path"])
        known = cls.arguments().keys() - {"shape"}
        if unknown := self._overrides.keys() - known:
            raise InputError(f"{cls.__name__} has no argument {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
        # as a search over np.arange gives them
        overrides = {name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
                     for name, value in self._overrides.items()}  # fmt: skip
        if overrides:
            check_config({"model": {"class_path": model["class_path"], "init_args": model["init_args"] | overrides}})
        shape = next(self._inputs(X[:1])).shape[1:]
        module = cls(shape=list(shape), **model["init_args"] | overrides)  # type: ignore[call-arg]
        trainer = self._trainer(options)
        device = trainer.strategy.root_device
        frozen = (module.frozen() or nn.Identity()).to(device)
        x = torch.cat([frozen(images.to(device)) for images in self._inputs(X)])
        index = torch.arange(len(x), device=device)
        normal = torch.zeros_like(index)
        trainer.fit(module, ResidentLoader(Sample(x, normal, normal, index), self.batch_size_, shuffle=True))
        module.trainer = None
        return module.to(device).double().eval()

    def _trainer(self, options: Config) -> Trainer:
        if self.device not in {"auto", "cpu", "cuda"}:
            raise InputError(f"no device '{self.device}': choose from auto, cpu and cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device 'cuda' is not available, because PyTorch finds no GPU here: choose cpu")
        if options.get("callbacks"):
            raise InputError("an estimator does not use the preset's trainer.callbacks: remove them, or run oneclass fit")
        options |= {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        options |= {"accelerator": chosen_device(self.device), "devices": 1, "enable_progress_bar": self.verbose}
        options |= {"callbacks": [Watcher()]}
        try:
            return Trainer(**options)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise InputError(f"Lightning refuses the preset's trainer: {' '.join(str(error).split())}") from error


def _as_stored(X: NDArray[Any]) -> Tensor:
    """Converts samples to ``(N, F)`` rows or ``(N, C, H, W)`` images, with a type that data sets have."""
    samples = torch.from_numpy(as_stored(X))
    return samples.unsqueeze(1) if samples.ndim == 3 else samples


@contextmanager
def _silence() -> Iterator[None]:
    """Suppresses the tips and warnings of Lightning."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in ("pytorch_lightning", "lightning_fabric")}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
