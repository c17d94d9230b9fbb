"""Files that are there whole or not at all."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, which takes its place at the end; after an error it is gone and ``path`` as it was.

    Raises:
        InputError: The folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole(Path(folder, "new", "a.txt")) as temporary:
        ...         _ = temporary.write_text("content")
        ...     Path(folder, "new", "a.txt").read_text()
        'content'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, content: str) -> None:
    """Writes a text, see :func:`whole`."""
    with whole(path) as temporary:
        temporary.write_text(content)


def refuse_input(out: Path, read: Iterable[Path]) -> None:
    """Stops where a command would write over a file that it reads, by whatever path that is given.

    Raises:
        InputError: It would.
    """
    if out.exists() and any(path.exists() and out.samefile(path) for path in read):
        raise InputError(f"{out} is read by this command: give another place for what it writes")
