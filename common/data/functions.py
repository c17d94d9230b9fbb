"""Functions of a user's own, named as ``module:function`` wherever a data set or a protocol is named."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from common.errors import InputError


def is_function(name: str) -> bool:
    """Whether a name is ``module:function``.

    Example:
        >>> is_function("my_data:load"), is_function("standard")
        (True, False)
    """
    return ":" in name


def named_function(name: str) -> Callable[..., Any]:
    """The function called ``module:function``; modules of the current folder can be imported.

    Raises:
        InputError: There is no such module or function, or the module cannot be imported.

    Example:
        >>> named_function("math:isqrt")(10)
        3
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's file may fail in any way
        reason = " ".join(str(error).split())
        raise InputError(f"'{name}' cannot be imported: {type(error).__name__}: {reason}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"'{name}' is not there: the module {module_name} has no function '{attribute}'")
    return function
