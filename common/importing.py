"""Imports a method's class by its path."""

import sys
from pkgutil import resolve_name

from common.errors import InputError
from common.module import OneClassModule


def import_class(class_path: str) -> type[OneClassModule]:
    """Imports a method by its class path.

    Raises:
        InputError: It cannot be imported, is not a :class:`OneClassModule`, or lacks an abstract method.

    Example:
        >>> import_class("autoencoder.Autoencoder").__name__
        'Autoencoder'
    """
    try:
        cls = resolve_name(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        file = getattr(sys.modules.get(class_path.partition(".")[0]), "__file__", None)
        where = f" from {file}" if file else ""
        raise InputError(f"cannot import '{class_path}'{where}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, OneClassModule)):
        raise InputError(f"'{class_path}' is not a class derived from common.module.OneClassModule")
    if missing := sorted(cls.__abstractmethods__):
        raise InputError(f"'{class_path}' lacks {', '.join(missing)}")
    return cls
