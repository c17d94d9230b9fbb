"""Turns an experiment's grids and a command's flags into cells."""

import argparse
import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path

import numpy as np
from pytorch_lightning import Trainer

from common.data import DATASETS, OneClassDataModule, load
from common.data.datamodule import default_root
from common.data.splitting import class_numbers
from common.errors import InputError
from common.experiment.cell import Cell, Settings
from common.experiment.declaration import Experiment, Grid, full_name
from common.importing import import_class
from common.names import dataset_label
from common.presets import Config, is_file, preset_path, read_config, row_name, split_preset
from common.training.lightning import check_config

LONGEST_NAME = 255
"""Bytes of a folder's name, on the usual file systems."""


def narrowed(experiment: Experiment, arguments: argparse.Namespace) -> list[Grid]:
    """Returns the grids that the flags ask for; all grids if there are no flags.

    With flags, each data set is run as the first grid that declares it says (with the named protocol, where one is named;
    the main grid, where none declares it), with the flags' values in place of the grid's. Grids that differ from it in their
    normal classes alone are run too. So no flag adds what it does not name, and a data set with a protocol or normal classes
    of its own keeps them.
    """
    if arguments.smoke:
        if named := [name for name in ("presets", "datasets", "protocols", "normal") if getattr(arguments, name)]:
            raise InputError(f"--smoke chooses presets, data and classes itself: leave out --{named[0]}")
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
            alike = [grid for grid in homes if replace(grid, normal=home.normal) == home]
            chosen += [replace(grid, **given, datasets=(dataset,), protocols=(protocol,)) for grid in alike]
    return list(dict.fromkeys(chosen))


def prepared(
    grids: Iterable[Grid],
    seeds: Sequence[int],
    settings: Settings,
    missing: Collection[str] = (),
    known: Collection[str] = (),
) -> list[Cell]:
    """Returns the cells of several grids, each once, after a check of their presets.

    Args:
        grids: What is to be run.
        seeds: Of the training.
        settings: Common to all.
        missing: Data sets whose cells are left out.
        known: Presets whose keys and values need no check.

    Raises:
        InputError: An unknown or mistaken preset, or two preset files of one name.
    """
    cells: dict[Cell, None] = {}
    for grid in grids:
        cells |= dict.fromkeys(cells_of(grid, seeds, settings, missing))
    refuse_one_name(dict.fromkeys(cell.preset for cell in cells))
    refuse_mistaken_presets(list(cells), settings, known)
    return list(cells)


def cells_of(grid: Grid, seeds: Sequence[int], settings: Settings, missing: Iterable[str] = ()) -> list[Cell]:
    """Returns the cells of a grid, except for missing data sets."""
    cells = []
    for dataset in grid.datasets:
        if dataset in missing:
            continue
        normal = _classes(dataset, settings) if grid.normal is None else _named_once(grid.normal, dataset, settings)
        for preset, protocol, k in itertools.product(grid.presets, grid.protocols, normal):
            cell = Cell(preset, dataset, protocol, k, seeds[0])
            cells += [replace(cell, seed=seed) for seed in (seeds if cell.seeded else seeds[:1])]
    return cells


def refuse_one_name(presets: Iterable[str]) -> None:
    """Raises InputError if two preset files have one name, and would share a row and a folder.

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


def refuse_mistaken_presets(cells: Sequence[Cell], settings: Settings, known: Collection[str] = ()) -> None:
    """Raises InputError for an unknown preset, and for a key or value that the command does not take, before any cell runs.

    Keys and values of the presets in ``known`` need no check.
    """
    for cell in cells:
        if too_long := [part for part in cell.directory(Path()).parts if len(part.encode()) > LONGEST_NAME]:
            raise InputError(
                f"{too_long[0][:40]}… has {len(too_long[0].encode())} letters, too many for a folder's name: "
                "put overrides into a YAML file, and give that as the preset"
            )
    for cell in {(cell.preset, cell.dataset): cell for cell in cells}.values():
        config = cell.config(settings)
        if cell.preset not in known and cell.detector is None:
            try:
                check_config(config)
            except InputError as error:
                raise InputError(f"{cell.preset}: {_with_suggestion(str(error), config)}") from error


def refuse_unknown_classes(cells: Sequence[Cell], settings: Settings) -> None:
    """Raises InputError for a class that its data set lacks, before any cell is run; it loads the data."""
    for dataset, normal in dict.fromkeys((cell.dataset, cell.normal) for cell in cells):
        _numbers_of(normal, dataset, settings)


def bases(presets: Iterable[str]) -> dict[str, str]:
    """Finds each preset file's base: the first earlier preset of its class or of a base class."""
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


def _with_suggestion(message: str, config: Config) -> str:
    """A message about an unknown key, with the key that is spelt most like it."""
    method, data, trainer = import_class(config["model"]["class_path"]), signature(OneClassDataModule), signature(Trainer)
    keys = method.arguments().keys() | data.parameters.keys() | trainer.parameters.keys()
    for word in re.findall(r"[Oo]ption '(\w+)'", message):
        if near := get_close_matches(word, keys, n=1):
            return f"{message}: did you mean {near[0]}?"
    return message


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


def _numbers_of(normal: str, dataset: str, settings: Settings) -> tuple[list[int], list[str]]:
    """The numbers of normal classes, and the names of all classes; InputError for a class that there is not."""
    classes = load(dataset, settings.root or default_root()).classes
    numbers = class_numbers(normal, classes, dataset)
    unknown = [name for name in normal.split("+") if name not in classes]
    if unknown and all(re.fullmatch(r"-?\d+", name) for name in classes):
        # a class's position beside names that are numbers too would be a guess
        raise InputError(f"{dataset_label(dataset)} has no class {unknown[0]}: choose from {', '.join(classes)}")
    return numbers, list(classes)


def _named_once(chosen: Iterable[str], dataset: str, settings: Settings) -> list[str]:
    """Normal classes as :func:`_classes` calls them, those that are normal together in the data set's order, each choice once.

    So a class that is given by its number and by its name is one cell, and stands beside the paper's number.
    """
    by_number = dataset in DATASETS and dataset != "folder"
    found: dict[str, None] = {}
    for normal in chosen:
        classes: list[str] = []
        if by_number and all(part.isdecimal() for part in normal.split("+")):
            numbers = [int(part) for part in normal.split("+")]  # without the data, which may not be there
        else:
            numbers, classes = _numbers_of(normal, dataset, settings)
        in_order = sorted(set(numbers))
        names = map(str, in_order) if by_number else (classes[k] for k in in_order)
        found["+".join(names)] = None
    return list(found)


def _classes(dataset: str, settings: Settings) -> list[str]:
    """The classes that are normal in turn: by number where a data set is a published one, else by name.

    Classes that only the official test set has, such as a folder's defects or a video's abnormal frames, are none of them.
    """
    data = load(dataset, settings.root or default_root())
    trained_on = np.unique(data.targets[~data.official_test]).tolist()
    if dataset in DATASETS and dataset != "folder":
        return [str(k) for k in trained_on]
    return [data.classes[k] for k in trained_on]
