"""Reads protocols from text, ours and users' own functions, and checks the splits that they return."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import yaml

from common.data.datasets import named_function
from common.data.protocols import PROTOCOLS, Indices, Mask, Splits
from common.errors import InputError
from common.names import joined


def parse_protocol(text: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads the name and the options of a protocol, as written on the command line and in records.

    Args:
        text: ``name[,option=value]…`` with a key of :data:`PROTOCOLS` or ``module:function``. Several ``anomalous`` classes,
            by number or name, are joined by ``+``. Options of a user's function are read as YAML.
        arguments: More options; those in the text take precedence, and those that are None are ignored.

    Raises:
        InputError: The protocol or an option is unknown, or a value is not a number.

    Example:
        >>> parse_protocol("standard,contamination=0.01,anomalous=3+5")
        {'protocol': 'standard', 'contamination': 0.01, 'anomalous': '3+5'}
    """
    name, *pairs = text.split(",")
    written = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    options = {key: value for key, value in (arguments or {}).items() if value is not None}
    _check_options(name, [*options, *written])
    for key, value in written.items():
        try:
            options[key] = _read_option(name, key, value)
        except (ValueError, yaml.YAMLError):
            raise InputError(f"'{value}' is not a valid {key} in protocol '{text}'") from None
    return {"protocol": name, **options}


def class_numbers(chosen: int | str | Sequence[int | str], classes: Sequence[str], dataset: str) -> list[int]:
    """Converts classes given by number or name, in a list or joined by ``+``, to class numbers.

    Class names may contain ``+``; the longest match wins. A class named like a number takes precedence over the number. Raises
    InputError if there is no such class, or the text is ambiguous: ``1`` beside a class ``01``, ``a`` beside ``[a]``.

    Example:
        >>> class_numbers("c+++0", ["c", "c++", "d"], "mine"), class_numbers([2, "d"], ["c", "c++", "d"], "mine")
        ([1, 0], [2, 2])
    """
    numbers = []
    each = [chosen] if isinstance(chosen, int | str) else chosen
    _refuse_names_like_lists("+".join(map(str, each)), classes)
    for given in each:
        words = str(given).split("+")
        while words:
            lengths = range(len(words), 1, -1)
            length = next((n for n in lengths if "+".join(words[:n]) in classes), 1)
            numbers.append(_class_number("+".join(words[:length]), isinstance(given, str), classes, dataset))
            words = words[length:]
    return numbers


def split(
    protocol: str,
    targets: Indices,
    official_test: Mask,
    normal: Sequence[int],
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Splits:
    """Splits a data set by a named protocol, and returns indices in ascending order, unique in validation and test.

    Args:
        protocol: A key of :data:`PROTOCOLS`, see :mod:`common.data.protocols`, or ``module:function``.
        targets: ``(N,)`` class numbers.
        official_test: ``(N,)``, whether a sample belongs to the official test set.
        normal: The normal classes.
        seed: Seed of what the protocol draws.
        options: More arguments of the protocol.

    Raises:
        InputError: The protocol refuses its arguments, or its function returns something other than splits.

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


def _refuse_names_like_lists(text: str, classes: Sequence[str]) -> None:
    """Raises InputError if a class may be meant that is named like a list, as which the command has read it."""
    for name in classes:
        with suppress(yaml.YAMLError):
            if name.startswith("[") and joined(name) == text:
                raise InputError(f"the class '{name}' reads as a list, which chooses '{text}': rename it")


def _class_number(name: str, is_text: bool, classes: Sequence[str], dataset: str) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        values = [int(other) for other in classes if other.isdecimal()]
        if not (is_text and int(name) in values):
            return int(name)
    raise InputError(f"'{dataset}' has no class '{name}': choose from {', '.join(classes)}")


def _function(protocol: str) -> Callable[..., Any]:
    if ":" in protocol:
        return named_function(protocol)
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol '{protocol}': choose from {', '.join(PROTOCOLS)}, or give my_module:function")
    return PROTOCOLS[protocol]


def _check_options(protocol: str, options: Sequence[str]) -> None:
    parameters = list(inspect.signature(_function(protocol)).parameters.values())[3:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.name != "seed"]
    for option in options:
        if option not in known:
            raise InputError(f"protocol '{protocol}' has no option '{option}'; its options: {', '.join(known) or 'none'}")


def _read_option(protocol: str, key: str, value: str) -> Any:
    if key == "anomalous":
        return value  # names are known to the data module alone, and "+" may be part of one
    if ":" in protocol:
        return yaml.safe_load(value)
    return int(value) if key in {"limit", "n_train"} else float(value)


def _checked(protocol: str, splits: Any, n: int) -> Splits:
    try:
        parts = [np.asarray(part) for part in splits]
    except (TypeError, ValueError) as error:
        raise InputError(f"protocol '{protocol}' must return Splits(train, val, test): {error}") from error
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
