"""Writes files completely or not at all, and never over a command's inputs."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from common.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Context with a temporary file that replaces ``path`` at the end; after an error ``path`` is unchanged.

    A link stays a link, and its target is replaced. What is no regular file, such as ``/dev/null``, a named pipe or
    ``/dev/stdout``, stays what it is and receives the content.

    Raises:
        InputError: The folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole(Path(folder, "new", "a.txt")) as temporary:
        ...         _ = temporary.write_text("content", encoding="utf-8")
        ...     Path(folder, "new", "a.txt").read_text(encoding="utf-8")
        'content'
    """
    try:
        with _received(path) if _is_stream(path) else _replaced(Path(os.path.realpath(path))) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def save_figure(figure: "Figure", path: Path, dpi: int) -> None:
    """Writes a figure in the format of its path's ending; raises InputError for an ending that is none of a picture's."""
    known, ending = figure.canvas.get_supported_filetypes(), path.suffix[1:].lower()
    if ending not in known:
        raise InputError(f"{path} must end in .{', .'.join(sorted(known))}")
    with whole(path) as temporary:
        figure.savefig(temporary, format=ending, dpi=dpi)


def write_whole(path: Path, content: str) -> None:
    """Writes a text in UTF-8, completely or not at all; bytes of file names in other encodings are escaped."""
    with whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")


def _is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe, or the (redirected) output of this process."""
    return path.exists() and (not path.is_file() or _is_own_output(path))


def _is_own_output(path: Path) -> bool:
    with suppress(OSError):  # standard output may be closed
        return os.path.samestat(path.stat(), os.fstat(1))
    return False


@contextmanager
def _received(stream: Path) -> Iterator[Path]:
    """Context with a temporary file whose content is sent to a stream at the end."""
    own = _is_own_output(stream)
    sys.stdout.flush()
    with TemporaryDirectory() as folder, open(1 if own else stream, "wb", closefd=not own) as receiver:
        temporary = Path(folder, stream.name)
        yield temporary
        with temporary.open("rb") as content:
            shutil.copyfileobj(content, receiver)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Context with a temporary file beside a regular file, which it replaces at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def refuse_input(out: Path, read: Iterable[Path]) -> None:
    """Raises InputError if a command would overwrite a file that it reads, even by another path."""
    if out.exists() and any(path.exists() and out.samefile(path) for path in read):
        raise InputError(f"{out} is read by this command: give another place for what it writes")
