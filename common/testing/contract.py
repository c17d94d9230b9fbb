"""The whole contract, for a class or a factory, and the ``oneclass check`` command."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.markup import escape

from common.errors import InputError, where
from common.importing import import_class
from common.module import OneClassModule
from common.presets import make_importable
from common.testing.checks import (
    check_checkpoints,
    check_docstrings,
    check_orientation,
    check_resume,
    check_returns,
    check_scores,
    check_shapes,
)
from common.testing.steps import check_optimizers
from common.testing.toys import Factory
from common.training.process import configure_process

CHECKS: tuple[Callable[[Factory], None], ...] = (
    check_docstrings,
    check_returns,
    check_shapes,
    check_optimizers,
    check_scores,
    check_orientation,
    check_checkpoints,
    check_resume,
)


def check_module(factory: Factory | type[OneClassModule], **arguments: Any) -> None:
    """Runs every check.

    Args:
        factory: A module's class, or a function from a shape to a new module.
        **arguments: Arguments of the class besides ``shape``. Small nets make the checks fast.

    Raises:
        AssertionError: What the first failing check has found.

    Example:
        >>> from autoencoder import Autoencoder
        >>> check_module(Autoencoder, widths=[8, 16], latent=8, lr=3e-3)  # doctest: +SKIP
    """
    by_keyword = isinstance(factory, type)  # the first parameter of a class may be another, before **kwargs
    for check in CHECKS:
        check(lambda shape: factory(shape=shape, **arguments) if by_keyword else factory(shape, **arguments))  # type: ignore


def main(argv: Sequence[str]) -> None:
    """Runs every check of :mod:`common.testing` on a class; exits with status 1 if one fails.

    Args:
        argv: A class path, importable from the current folder or as installed, then arguments of the class besides
            ``shape``, such as ``my_idea.MyMethod --latent 8 --widths=[8,16]``. Small nets make the checks fast.

    Raises:
        InputError: The class cannot be imported, is no module, or does not take an argument.
    """
    configure_process()
    make_importable(Path.cwd())
    cls = import_class(argv[0])
    arguments = _arguments(cls, argv)
    console, failures = Console(highlight=False), 0
    for check in CHECKS:
        purpose = (check.__doc__ or "").splitlines()[0].replace("``", "")
        with console.status(purpose):
            fault = _fault(check, cls, arguments)
        failures += fault is not None
        verdict = "[green]ok[/]   " if fault is None else "[red]wrong[/]"
        console.print(f"{verdict} {escape(fault or purpose)}", soft_wrap=True)
    if failures:
        console.print(f"{failures} of {len(CHECKS)} checks failed")
        raise SystemExit(1)


def _arguments(cls: type[OneClassModule], words: Sequence[str]) -> dict[str, Any]:
    parser = ArgumentParser(prog=f"oneclass check {words[0]}", exit_on_error=False)
    parser.add_class_arguments(cls, skip={"shape"}, fail_untyped=False)
    try:
        arguments: dict[str, Any] = parser.parse_args(list(words[1:])).as_dict()
    except ArgumentError as error:
        message = " ".join(str(error).split())
        raise InputError(f"{message}; see oneclass check {words[0]} --help") from error
    return arguments


def _fault(check: Callable[[Factory], None], cls: Any, arguments: dict[str, Any]) -> str | None:
    """What a check finds wrong, in one line."""
    try:
        check(lambda shape: cls(shape=shape, **arguments))
    except AssertionError as error:
        return str(error)
    except Exception as error:  # whatever a stranger's class raises
        return f"{check.__name__}: {type(error).__name__}: {' '.join(str(error).split())[:300]}{where(error)}"
    return None
