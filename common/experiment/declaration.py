"""Declares experiments: grids of presets, data sets, protocols and normal classes.

Nothing here needs PyTorch, so that a command can answer ``--help`` at once.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from common.names import dataset_label
from common.presets import is_file, row_name, split_preset

Backend = Literal["loky", "ray", "dask"]
"""Where cells run: processes of this machine, or the workers of a cluster."""


@dataclass(frozen=True)
class Grid:
    """A product of choices. Without ``normal``, every class is the normal one in turn."""

    presets: tuple[str, ...]
    datasets: tuple[str, ...]
    protocols: tuple[str, ...] = ("standard",)
    normal: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("auroc",)


class Place(NamedTuple):
    """A row that an experiment's table should have.

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
        """The rows that the tables should have."""
        found = []
        for grid in (self.main, *self.also):
            for preset, dataset, protocol in itertools.product(grid.presets, grid.datasets, grid.protocols):
                name = row_name(full_name(preset, self.name))
                found.append(Place(name, dataset_label(dataset), protocol, grid.metrics, grid.normal))
        return found


def full_name(preset: str, experiment: str) -> str:
    """Adds the method's name to an experiment's own preset; other presets and files stay as they are.

    Example:
        >>> full_name("stable,sigma=1e-1", "alocc"), full_name("classical-lof", "alocc"), full_name("my/l1.yaml", "ocgan")
        ('alocc-stable,sigma=1e-1', 'classical-lof', 'my/l1.yaml')
    """
    head, _ = split_preset(preset)
    return preset if "-" in head or is_file(head) else f"{experiment}-{preset}"
