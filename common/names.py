"""Keeps names of classes and folders as text, even if YAML would read a number, a date or a truth value."""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

PARSER_MODE = "oneclass"
"""Jsonargparse's name of the YAML that keeps names, see :func:`keep_names`."""


def keep_names(config: Any, text: str) -> Any:
    """Restores ``normal``, ``anomalous`` and ``root`` of a configuration to the text in its YAML.

    Args:
        config: What the text was read to; changed in place.
        text: The YAML of a whole configuration, or of its ``data`` alone.

    Example:
        >>> text = "data: {normal: 01, anomalous: [1e3, no]}"
        >>> keep_names(yaml.safe_load(text), text)
        {'data': {'normal': '01', 'anomalous': '1e3+no'}}
    """
    if isinstance(config, dict):
        written = yaml.load(text, yaml.BaseLoader)
        _keep(config, written)
        _keep(config.get("data"), written.get("data"))
    return config


def joined(text: str) -> str:
    """Joins classes, which may be written as a YAML list, to one text with ``+``.

    Raises yaml.YAMLError for a text that begins like a list, but is none.

    Example:
        >>> joined("[01, 02]"), joined("01")
        ('01+02', '01')
    """
    return "+".join(map(str, yaml.load(text, yaml.BaseLoader))) if text.startswith("[") else text


def dataset_label(name: str) -> str:
    """The name of a data set in tables and folder names.

    A file that is called like a published data set keeps its ending.

    Example:
        >>> [dataset_label(name) for name in ("mnist", "path/my.npz", "my_data:load", "path/mnist.npz")]
        ['mnist', 'my', 'my_data.load', 'mnist.npz']
    """
    if name.endswith(".npz"):
        from common.data.datasets import DATASETS  # which imports this module

        path = Path(name)
        return path.name if path.stem in DATASETS else path.stem
    return name.replace(":", ".")


def _keep(data: Any, written: Any) -> None:
    if not isinstance(data, dict):
        return
    for key in ("normal", "anomalous", "root"):
        # null means "not given", except for the normal class, which is always given
        if key in written and (key == "normal" or data[key] is not None):
            value = written[key]
            data[key] = "+".join(map(str, value)) if isinstance(value, list) else value


def _load(text: str) -> Any:
    return keep_names(get_loader("yaml")(text), text)


set_loader(PARSER_MODE, _load, exceptions=(yaml.YAMLError,))
