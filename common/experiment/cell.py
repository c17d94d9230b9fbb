"""One cell of a table: a preset with overrides on a data set, under a protocol, for a normal class and a seed."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.classical import detector
from common.data import DATASETS, load
from common.data.datamodule import default_root
from common.data.images import is_table
from common.errors import InputError
from common.names import dataset_label
from common.presets import (
    Config,
    assign,
    flags,
    is_file,
    parse_override,
    preset_path,
    read_config,
    row_name,
    split_preset,
)

OWN = {("data", "dataset"): "--datasets", ("data", "normal"): "--normal", ("data", "protocol"): "--protocols"}
"""Keys that are a cell's own, and the flags that set them."""


@dataclass(frozen=True)
class Settings:
    """How cells are run. Only ``max_epochs`` and ``image_size`` change a result; the device changes its last digits.

    Attributes:
        root: Where data sets lie.
        runs: Where records go.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_epochs: Instead of the preset's.
        image_size: Instead of the preset's, or of the data's own.
        threads: Of PyTorch and of the linear algebra libraries, for each cell; all by default.
        gpu: With the device ``cuda``, which one; the first by default.
        progress: Lightning's progress bar.
        force: Rerun finished cells.
        keep: Take stale records for done.
        oracle: Score the test set after every epoch, for the record's ``oracle`` entry; it changes no other number.
    """

    root: Path | None = None
    runs: Path = Path("runs")
    device: str = "auto"
    max_epochs: int | None = None
    image_size: int | None = None
    threads: int | None = None
    gpu: int | None = None
    progress: bool = False
    force: bool = False
    keep: bool = False
    oracle: bool = False


@dataclass(frozen=True, order=True)
class Cell:
    """One run; its record is in ``runs/<name>/<dataset>/<protocol>/normal=<k>/seed=<s>/``.

    Attributes:
        preset: ``<method>-<preset>``, ``classical-<detector>`` or a YAML file; overrides follow after commas, as
            ``key=value`` (see :func:`common.presets.override_path`). Overrides of a classical detector are the arguments of
            :func:`common.backbones.split`, with ``backbone`` for its name, and keys of ``data``.
        dataset: As :func:`common.data.load` takes it.
        protocol: As :func:`common.data.parse_protocol` reads it.
        normal: The normal class, by number or name; several joined by ``+``.
        seed: Of the training.

    Example:
        >>> Cell("autoencoder-smoke,latent=4", "digits", "standard", "3", 0).directory(Path("runs")).as_posix()
        'runs/autoencoder-smoke,latent=4/digits/standard/normal=3/seed=0'
    """

    preset: str
    dataset: str
    protocol: str
    normal: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the row and of its folder."""
        return row_name(self.preset)

    @property
    def detector(self) -> str | None:
        """The classical detector that the cell runs, or None for a :class:`common.module.OneClassModule`."""
        preset, _ = split_preset(self.preset)
        method, _, name = preset.partition("-")
        return name if method == "classical" and not is_file(preset) else None

    @property
    def seeded(self) -> bool:
        """Whether a seed makes a difference, as it does to all but some classical detectors.

        Example:
            >>> [Cell(f"classical-{name}", "digits", "standard", "0", 0).seeded for name in ("lof", "iforest")]
            [False, True]
        """
        return self.detector is None or detector(self.detector).seeded

    def directory(self, runs: Path) -> Path:
        """The folder of the record."""
        protocol, normal = self.protocol.replace(":", ".").replace("/", "_"), self.normal.replace("/", "_")
        place = f"{protocol}/normal={normal}/seed={self.seed}"
        return runs / self.name / dataset_label(self.dataset) / place

    def config(self, settings: Settings = Settings()) -> Config:
        """The configuration for the ``oneclass`` command: the preset, the overrides and this cell's data.

        Raises InputError for an unknown preset, and an override that is not ``key=value``.

        Example:
            >>> Cell("classical-iforest_ruff", "mnist", "standard", "3", 0).config()["data"]["normalization"]
            'gcn'
        """
        if self.detector is None:
            config = read_config(self._preset_path(settings))
        else:
            config = {"data": dict(detector(self.detector).data)}
        for path, value in self._changes(settings):
            assign(config, path, value)
        return config

    def command(self, settings: Settings = Settings()) -> str:
        """The ``oneclass fit`` line that makes this cell; for a classical detector the experiment's line for one cell.

        Example:
            >>> print(Cell("autoencoder-smoke", "digits", "standard", "3", 0).command(Settings(threads=1)))
            ... # doctest: +NORMALIZE_WHITESPACE
            oneclass fit --config autoencoder-smoke --data.dataset=digits --data.normal=3 --data.protocol=standard
            --seed_everything=0 --threads=1 --directory=runs/autoencoder-smoke/digits/standard/normal=3/seed=0
        """
        if self.detector is not None:
            return self._classical_command(settings)
        words = ["oneclass", "fit", "--config", self._config_name(settings)]
        changed: Config = {}
        for path, value in self._changes(settings):
            assign(changed, path, value)
        words += flags(changed)
        words += ["--oracle=true"] if settings.oracle else []
        words += [f"--threads={settings.threads}"] if settings.threads else []
        words += [f"--trainer.accelerator={settings.device}"] if settings.device not in {"auto", "cpu"} else []
        return shlex.join([*words, f"--directory={self.directory(settings.runs).as_posix()}"])

    def _config_name(self, settings: Settings) -> str:
        """The preset as ``--config`` takes it: a file, or a preset's name with that of its variant for a data set."""
        preset, _ = split_preset(self.preset)
        if is_file(preset):
            return preset
        return f"{preset.partition('-')[0]}-{self._preset_path(settings).stem}"

    def _preset_path(self, settings: Settings) -> Path:
        """The preset's file: the one for the data set where there is one, else for a table that for vectors."""
        variants = [dataset_label(self.dataset)]
        if self.dataset not in DATASETS and is_table(load(self.dataset, settings.root or default_root()).images):
            variants.append("vectors")
        return preset_path(split_preset(self.preset)[0], *variants)

    def _changes(self, settings: Settings) -> Iterator[tuple[tuple[str, ...], Any]]:
        """What the cell changes in its preset; an override of its row counts more than a flag of the experiment."""
        if settings.image_size is not None:
            yield ("data", "image_size"), settings.image_size
        if settings.max_epochs is not None and self.detector is None:
            yield ("trainer", "max_epochs"), settings.max_epochs
        _, overrides = split_preset(self.preset)
        for option in overrides:
            path, value = parse_override(option)
            if path in OWN:
                raise InputError(f"'{option}' in a preset: give {OWN[path]} instead")
            if self.detector is None:
                yield path, value
            else:
                yield from self._of_detector(path, value)
        yield ("data", "dataset"), self.dataset
        yield ("data", "normal"), self.normal
        yield ("data", "protocol"), self.protocol
        if settings.root is not None:
            yield ("data", "root"), str(settings.root)
        yield ("seed_everything",), self.seed

    @staticmethod
    def _of_detector(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        """A classical detector has no module and no trainer: its overrides are those of its backbone and of the data."""
        if path[0] == "data" or path[2:] == ("image_size",):
            yield ("data", path[-1]), value
        elif path[:2] != ("model", "init_args"):
            raise InputError(f"a classical detector has no {path[0]}: its overrides are its backbone's and those of data")
        elif path[2] == "backbone":
            yield ("backbone", "name"), value
            yield ("data", "channels"), 3
        else:
            yield ("backbone", path[2]), value

    def _classical_command(self, settings: Settings) -> str:
        words = ["python", "-m", "experiments.classical", "--presets", self.preset, "--datasets", self.dataset]
        words += ["--protocols", self.protocol, "--normal", self.normal, "--seeds", str(self.seed)]
        words += ["--image-size", str(settings.image_size)] if settings.image_size else []
        words += ["--root", str(settings.root)] if settings.root else []
        words += ["--runs", str(settings.runs)] if settings.runs != Path("runs") else []
        return shlex.join(words)
