"""Experiments as grids of cells: what is declared, and what the flags of a command make of it."""

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from common.data import DATASETS, dataset_label, load
from common.data.datamodule import default_root
from common.errors import InputError
from common.experiment.cell import Cell, Settings
from common.module import import_class
from common.presets import is_file, preset_path, read_config, row_name, split_preset


@dataclass(frozen=True)
class Grid:
    """A product of choices; every class in turn is normal where ``normal`` is not given."""

    presets: tuple[str, ...]
    datasets: tuple[str, ...]
    protocols: tuple[str, ...] = ("standard",)
    normal: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("auroc",)


class Place(NamedTuple):
    """A row of an experiment that its table should hold.

    Attributes:
        name: Of the row, ``<method>-<preset>`` or a file's stem, with overrides.
        dataset: Its label.
        protocol: With its options.
        metrics: To show, the most important first.
        normal: The only normal choices that are asked for; all classes in turn by default.
    """

    name: str
    dataset: str
    protocol: str
    metrics: Sequence[str] = ("auroc",)
    normal: Sequence[str] | None = None


@dataclass(frozen=True)
class Experiment:
    """A paper's tables.

    Attributes:
        name: Of ``python -m experiments.<name>`` and of the files in ``reported`` and ``results``.
        title: Of the result page.
        main: The grid whose values the flags of the command line replace.
        also: Further grids, run where no flag narrows the experiment; else those that a flag asks for, see :func:`narrowed`.
        compare: Whose reported numbers stand beside ours, see :func:`common.experiment.table.summarise`.
        labels: Short names of methods, scores and metrics, for the terminal.
        seeds: By default.
    """

    name: str
    title: str
    main: Grid
    also: tuple[Grid, ...] = ()
    compare: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)

    @cached_property
    def places(self) -> list[Place]:
        """The rows that the tables should hold."""
        found = []
        for grid in (self.main, *self.also):
            for preset, dataset, protocol in itertools.product(grid.presets, grid.datasets, grid.protocols):
                name = row_name(full_name(preset, self.name))
                found.append(Place(name, dataset_label(dataset), protocol, grid.metrics, grid.normal))
        return found


def narrowed(experiment: Experiment, arguments: argparse.Namespace) -> list[Grid]:
    """The grids that the flags ask for: without flags all of them.

    With flags, each data set is run as the first grid that declares it says (with the named protocol, where one is named;
    the main grid, where none declares it), with the flags' values in place of the grid's. So no flag adds what it does not
    name, and a data set with a protocol or a normal class of its own keeps them.
    """
    if arguments.smoke:
        return [_smoke(experiment)]
    grids = [_named(grid, experiment.name) for grid in (experiment.main, *experiment.also)]
    given = {name: tuple(values) for name in ("presets", "normal") if (values := getattr(arguments, name))}
    if "presets" in given:
        given["presets"] = tuple(full_name(preset, experiment.name) for preset in given["presets"])
    if not (given or arguments.datasets or arguments.protocols):
        return grids
    chosen = []
    for dataset in arguments.datasets or _datasets_of(grids, arguments.protocols):
        homes = [grid for grid in grids if dataset in grid.datasets] or grids[:1]
        for protocol in arguments.protocols or _protocols_of(homes, grids[0]):
            home = next((grid for grid in homes if protocol in grid.protocols), homes[0])
            chosen.append(replace(home, **given, datasets=(dataset,), protocols=(protocol,)))
    return chosen


def full_name(preset: str, experiment: str) -> str:
    """A preset with its method's name, which the experiment's own may be given without; files stay as they are.

    Example:
        >>> full_name("stable,sigma=1e-1", "alocc"), full_name("classical-lof", "alocc"), full_name("my/l1.yaml", "ocgan")
        ('alocc-stable,sigma=1e-1', 'classical-lof', 'my/l1.yaml')
    """
    head, _ = split_preset(preset)
    return preset if "-" in head or is_file(head) else f"{experiment}-{preset}"


def cells_of(grid: Grid, seeds: Sequence[int], settings: Settings, missing: Iterable[str] = ()) -> list[Cell]:
    """The cells of a grid, but of data sets that are missing."""
    cells = []
    for dataset in grid.datasets:
        if dataset in missing:
            continue
        normal = grid.normal or _classes(dataset, settings)
        for preset, protocol, k in itertools.product(grid.presets, grid.protocols, normal):
            cell = Cell(preset, dataset, protocol, k, seeds[0])
            cells += [replace(cell, seed=seed) for seed in (seeds if cell.seeded else seeds[:1])]
    return cells


def refuse_one_name(presets: Iterable[str]) -> None:
    """Stops where two presets would share a row and a folder.

    Raises:
        InputError: Two files have the same name.

    Example:
        >>> refuse_one_name(["my/l1.yaml", "other/l1.yaml"])
        Traceback (most recent call last):
        common.errors.InputError: my/l1.yaml and other/l1.yaml would both be called l1: rename one
    """
    named: dict[str, str] = {}
    for preset in presets:
        first = named.setdefault(row_name(preset), preset)
        if first != preset:
            raise InputError(f"{first} and {preset} would both be called {row_name(preset)}: rename one")


def bases(presets: Iterable[str]) -> dict[str, str]:
    """For each preset file, its base: the first preset before it of its class, or of a class that it extends."""
    classes = {}
    for preset in presets:
        head, _ = split_preset(preset)
        if not head.startswith("classical-"):
            classes[row_name(preset)] = import_class(read_config(preset_path(head))["model"]["class_path"])
    found = {}
    for preset in presets:
        name = row_name(preset)
        if is_file(split_preset(preset)[0]) and name in classes:
            earlier = list(classes)[: list(classes).index(name)]
            extended = [other for other in earlier if issubclass(classes[name], classes[other])]
            if extended:
                found[name] = extended[0]
    return found


def _datasets_of(grids: Sequence[Grid], protocols: Sequence[str] | None) -> list[str]:
    """Data sets that are declared with the named protocols; the main grid's, where no protocol is named or declared."""
    declared = [grid.datasets for grid in grids if set(grid.protocols) & set(protocols or ())]
    return list(dict.fromkeys(itertools.chain(*(declared or [grids[0].datasets]))))


def _protocols_of(homes: Sequence[Grid], main: Grid) -> list[str]:
    if homes[0] is main:
        return list(main.protocols)
    return list(dict.fromkeys(itertools.chain(*(grid.protocols for grid in homes))))


def _named(grid: Grid, experiment: str) -> Grid:
    return replace(grid, presets=tuple(full_name(preset, experiment) for preset in grid.presets))


def _smoke(experiment: Experiment) -> Grid:
    """Each method's smoke preset, and the classical detectors of pixels, on two of the embedded digits."""
    presets = []
    for preset in _named(experiment.main, experiment.name).presets:
        head, overrides = split_preset(preset)
        method, _, _ = head.partition("-")
        if not overrides:
            presets.append(head if method == "classical" else f"{method}-smoke")
    return Grid(tuple(dict.fromkeys(presets)), ("digits",), normal=("0", "1"))


def _classes(dataset: str, settings: Settings) -> list[str]:
    """The classes that are normal in turn: by number where a data set is a published one, else by name.

    A folder's classes that ``train`` lacks, such as defects, are none of them.
    """
    data = load(dataset, settings.root or default_root())
    numbers = range(len(data.classes))
    if dataset == "folder":
        return [data.classes[k] for k in numbers if k in data.targets[~data.official_test]]
    return list(map(str, numbers)) if dataset in DATASETS else list(data.classes)
