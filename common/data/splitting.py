"""Protocols by their names, those of :data:`PROTOCOLS` and functions of a user's own, from text to checked splits."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from common.data.functions import is_function, named_function
from common.data.protocols import PROTOCOLS, Indices, Splits
from common.errors import InputError


def parse_protocol(text: str) -> dict[str, Any]:
    """The name and the options of a protocol as it is written on the command line and in a record.

    Args:
        text: ``name[,option=value]…`` with a key of :data:`PROTOCOLS` or ``module:function``. Several ``anomalous`` classes,
            by number or name, are joined by ``+``. Options of a user's own function are read as YAML.

    Returns:
        ``protocol``, the name, and the options as arguments of :class:`common.data.OneClassDataModule`.

    Raises:
        InputError: Unknown protocol or option, or a value that is no number.

    Example:
        >>> parse_protocol("standard,contamination=0.01,anomalous=3+5")
        {'protocol': 'standard', 'contamination': 0.01, 'anomalous': '3+5'}
    """
    name, *pairs = text.split(",")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        options[key] = value
    check_options(name, options)
    for key, value in options.items():
        try:
            options[key] = _read_option(name, key, value)
        except ValueError:
            raise InputError(f"'{value}' is no value for {key} in protocol '{text}'") from None
    return {"protocol": name, **options}


def check_options(protocol: str, options: Iterable[str]) -> None:
    """Refuses what a protocol does not know.

    Args:
        protocol: A key of :data:`PROTOCOLS` or ``module:function``.
        options: Names of keyword arguments, without ``seed``.

    Raises:
        InputError: Unknown protocol or option.

    Example:
        >>> check_options("proportion", ["share", "val_fraction"])
    """
    parameters = list(inspect.signature(_function(protocol)).parameters.values())[3:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.name != "seed"]
    for option in options:
        if option not in known:
            raise InputError(f"protocol '{protocol}' has no option '{option}': {', '.join(known) or 'it has none'}")


def split(
    protocol: str,
    targets: Indices,
    official_test: NDArray[np.bool_],
    normal: Sequence[int],
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Splits:
    """The splits of a protocol by its name, each part in ascending order, without repetition in validation and test.

    Args:
        protocol: A key of :data:`PROTOCOLS` or ``module:function``.
        targets: See the module's docstring, as ``official_test`` and ``normal``.
        official_test: See ``targets``.
        normal: See ``targets``.
        seed: Of the protocol's random choices.
        options: Its other keyword arguments.

    Raises:
        InputError: What the protocol refuses, or a function that returns no splits.

    Example:
        >>> targets = np.arange(100) % 10
        >>> [len(part) for part in split("standard", targets, targets == 9, [3], options={"val_fraction": 0.5})]
        [5, 5, 10]
    """
    function, arguments = _function(protocol), {"seed": seed, **(options or {})}
    try:
        inspect.signature(function).bind(targets, official_test, normal, **arguments)
    except TypeError as error:
        call = "function(targets, official_test, normal, seed=0, **options)"
        raise InputError(f"protocol '{protocol}' is called as {call}: {error}") from error
    return _checked(protocol, function(targets, official_test, normal, **arguments), len(targets))


def _function(protocol: str) -> Callable[..., Any]:
    if is_function(protocol):
        return named_function(protocol)
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol '{protocol}': choose from {', '.join(PROTOCOLS)}, or give my_module:function")
    return PROTOCOLS[protocol]


def _read_option(protocol: str, key: str, value: str) -> Any:
    if key == "anomalous":
        return value  # names are known to the data module alone, and "+" may be part of one
    if is_function(protocol):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(value) from error
    return int(value) if key == "limit" else float(value)


def _checked(protocol: str, splits: Any, n: int) -> Splits:
    try:
        parts = [np.asarray(part) for part in splits]
    except (TypeError, ValueError) as error:
        raise InputError(f"protocol '{protocol}' returns no Splits(train, val, test): {error}") from error
    if len(parts) != 3:
        raise InputError(f"protocol '{protocol}' returns {len(parts)} parts instead of train, val and test")
    for name, part in zip(Splits._fields, parts, strict=True):
        if part.ndim != 1 or (len(part) and part.dtype.kind not in "iu"):
            raise InputError(f"protocol '{protocol}' returns {name} as {part.shape} {part.dtype}: give (n,) integer indices")
        if len(part) and not 0 <= part.min() <= part.max() < n:
            raise InputError(f"protocol '{protocol}' returns {name} indices outside of the {n} samples")
    train, val, test = (part.astype(np.int64) for part in parts)
    if not len(train):
        raise InputError(f"protocol '{protocol}' leaves nothing to train on")
    return Splits(np.sort(train), np.unique(val), np.unique(test))
