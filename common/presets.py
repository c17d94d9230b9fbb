"""Presets: the configurations in the papers' packages, found by name."""

from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError

Config = dict[str, Any]
"""A configuration in the format of Lightning's command line."""

REPOSITORY = Path(__file__).parents[1]


def read_preset(method: str, preset: str, *variants: str) -> Config:
    """The first of ``<method>/configs/<preset>.<variant>.yaml`` that there is, else ``<preset>.yaml``.

    Args:
        method: A package with a folder ``configs``.
        preset: The YAML's name.
        variants: What the preset is wanted for, such as the name of a data set; the closest first.

    Raises:
        InputError: Unknown method or preset.

    Example:
        >>> read_preset("autoencoder", "smoke", "digits")["model"]["class_path"]
        'autoencoder.Autoencoder'
    """
    folder = REPOSITORY / method / "configs"
    for name in (*(f"{preset}.{variant}.yaml" for variant in variants), f"{preset}.yaml"):
        if (folder / name).is_file():
            config: Config = yaml.safe_load((folder / name).read_text())
            return config
    known = ", ".join(sorted({path.name.split(".")[0] for path in folder.glob("*.yaml")}))
    raise InputError(f"no preset '{preset}' of '{method}': choose from {known or 'nothing, no such method'}")
