"""Runs many cells side by side and skips finished ones.

How many threads a cell gets depends on ``jobs`` and the number of cells asked for, never on how many are left or where they
run. A grid that was stopped thus goes on to the same numbers, on any engine.

A cell whose worker is killed is begun again, from its checkpoint. Where one killed worker takes the others along, as loky's
does, a cell that was hit twice waits until it can run by itself, so that in the end only the one at fault fails.

Several grids may share a runs folder: each skips a cell that another is at, and reads its record in the end. A lock of the
operating system keeps the others out of a cell; it ends with its process, so nothing has to be cleaned up after a kill.
"""

import gc
import itertools
import os
import platform
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from common.command_line import for_the_user
from common.data.datamodule import default_root
from common.errors import InputError, WeightsMissingError, where
from common.experiment.cell import Cell, Settings
from common.experiment.declaration import Backend
from common.experiment.engines import Engine, engine, local_slots, result_of
from common.experiment.records import Record, auroc_text
from common.experiment.run import finished, run
from common.files import write_whole
from common.names import dataset_label

ATTEMPTS = 3
"""Maximum number of attempts at a cell whose worker is killed."""


def run_grid(
    cells: Sequence[Cell],
    settings: Settings,
    jobs: int | None,
    console: Console,
    backend: Backend = "loky",
    cells_per_gpu: int = 1,
) -> dict[Cell, str]:
    """Runs every cell that has no current record; returns the failed ones and their messages, see the module's docstring.

    A failed cell's traceback is in ``error.txt`` in its folder. InputError, a mistake of the user's, ends the grid at once; for
    weights of a net that cannot be had, only their cells fail.

    Args:
        cells: What to run.
        settings: Common to all.
        jobs: Cells at a time; by default one per core of this machine, or ``cells_per_gpu`` for each GPU, or as many as a
            cluster takes.
        console: For one line per finished cell, and the bar; it must print text as it is, without markup.
        backend: As :func:`common.experiment.engines.engine` reads it.
        cells_per_gpu: With the device ``cuda``, how many cells share a GPU.
    """
    failures: dict[Cell, str] = {}
    left = [cell for cell in cells if not is_done(cell, settings)]
    if not left:
        return failures
    limit = cells_at_a_time(cells, settings, jobs, cells_per_gpu)
    settings = replace(settings, threads=threads_per_cell(limit))
    if backend != "loky":
        settings = replace(settings, runs=settings.runs.absolute(), root=(settings.root or default_root()).absolute())
    single = len(cells) == 1 and backend == "loky"
    work = _Work(uuid4().hex, replace(settings, progress=single and console.is_terminal), cells_per_gpu)
    share = 1 / cells_per_gpu if settings.device == "cuda" else 0
    at_a_time = limit if jobs or backend == "loky" else len(cells)
    columns = ("cells", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
    with engine(backend, limit, share) as executor, Progress(*columns, console=console, disable=single) as bar:
        task = bar.add_task("", total=len(cells), completed=len(cells) - len(left))
        for cell, result in _results(left, work, executor, at_a_time, console):
            bar.advance(task)
            if isinstance(result, str):
                failures[cell] = result
                console.print(f"failed {_title(cell)}: {result}", style="red", soft_wrap=True)
            else:
                console.print(_line(cell, result), soft_wrap=True)
    return failures


def is_done(cell: Cell, settings: Settings) -> bool:
    """Whether a cell has a current record, or with ``--keep`` any record."""
    record = finished(cell, settings)
    return record is not None and (settings.keep or not record["stale"])


def cells_at_a_time(cells: Sequence[Cell], settings: Settings, jobs: int | None, cells_per_gpu: int = 1) -> int:
    """How many cells run side by side on this machine; raises InputError for less than one."""
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be at least 1, not {jobs}")
    return min(jobs or local_slots(settings.device, cells_per_gpu), len(cells))


def threads_per_cell(limit: int) -> int:
    """Each cell's share of this process's threads, where ``limit`` cells run side by side."""
    return max(1, torch.get_num_threads() // max(1, limit))


@dataclass(frozen=True)
class _Work:
    """One call of :func:`run_grid`, as its workers see it."""

    name: str
    settings: Settings
    cells_per_gpu: int


def _results(
    cells: Sequence[Cell], work: _Work, executor: Engine, at_a_time: int, console: Console
) -> Iterator[tuple[Cell, Record | str]]:
    """Yields what comes of each cell, in the order in which they end."""
    ready, elsewhere, suspects = deque(cells), deque[Cell](), deque[Cell]()
    running: dict[Future[Any], Cell] = {}
    begun: Counter[Cell] = Counter()
    patient, in_vain, last_error = False, 0, None
    while ready or running or elsewhere or suspects:
        if not ready and not running:
            # Only now may a worker wait for another grid, and a cell whose workers were killed twice run by itself.
            patient, ready, elsewhere = True, elsewhere, ready
            if not ready:
                ready.append(suspects.popleft())
        while ready and len(running) < at_a_time:
            cell = ready.popleft()
            running[executor.submit(_attempt, cell, work, patient)] = cell
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            cell = running.pop(future)
            try:
                result = result_of(future)
            except executor.lost as error:
                times = _begun(cell, work)
                if times > begun[cell]:
                    in_vain = 0
                elif error is not last_error:  # one for all tasks that loky lost together
                    in_vain += 1
                if in_vain == ATTEMPTS:
                    raise InputError(f"workers are killed before they begin a cell: {error}") from error
                begun[cell], last_error = times, error
                (ready if times < ATTEMPTS - 1 else suspects).append(cell)
                console.print(f"a worker was killed: begun again {_title(cell)}", soft_wrap=True)
                continue
            if result is None:
                elsewhere.append(cell)
            else:
                in_vain = 0
                yield cell, result


def _attempt(cell: Cell, work: _Work, patient: bool) -> Record | str | None:
    """Returns the record or an error message, or None if another process runs the cell and we do not wait."""
    runs = work.settings.runs
    if not runs.is_dir():
        raise InputError(f"{platform.node()} has no folder {runs}: share runs and data, at one path everywhere")
    lock = _beside(cell, work, "lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=-1 if patient else 0):
            return _run(cell, work)
    except Timeout:
        return None
    except OSError as error:
        raise InputError(f"cannot write in {lock.parent}: {error.strerror or error}") from error


def _run(cell: Cell, work: _Work) -> Record | str:
    begun, note, settings = _begun(cell, work), _beside(cell, work, "begun"), work.settings
    try:
        if begun == ATTEMPTS:
            raise ChildProcessError(f"its process was killed {begun} times, as where memory runs out: try fewer --jobs")
        note.write_text(f"{work.name} {begun + 1} {platform.node()} {os.getpid()}", encoding="utf-8")
        if settings.device == "cuda":
            settings = replace(settings, gpu=_place(work.cells_per_gpu)[0])
        return run(cell, replace(settings, force=settings.force and not begun))
    except Exception as error:
        message = for_the_user(error)
        if message is not None and not _lacks_weights(error):
            raise InputError(f"{_title(cell)}: {message}") from error
        write_whole(cell.directory(settings.runs) / "error.txt", traceback.format_exc())
        if message is None:
            first_line, *_ = [*str(error).splitlines(), ""]
            message = f"{type(error).__name__}: {first_line}{where(error)}"
        return message
    finally:
        note.unlink(missing_ok=True)
        gc.collect()  # trainers hold themselves in cycles, and the next cell wants the memory


def _beside(cell: Cell, work: _Work, ending: str) -> Path:
    """A file that outlives the cell's folder."""
    directory = cell.directory(work.settings.runs)
    return directory.with_name(f".{directory.name}.{ending}")


def _begun(cell: Cell, work: _Work) -> int:
    """How many attempts of this grid at the cell were killed, or still run."""
    note = _beside(cell, work, "begun")
    text = note.read_text(encoding="utf-8") if note.is_file() else ""
    name, times, *_ = text.split() or ("", "0")
    return int(times) if name == work.name else 0


@cache
def _place(cells_per_gpu: int) -> tuple[int | None, FileLock | None]:
    """Takes a place on the emptiest GPU; the lock holds it until this process ends."""
    gpus = {gpu: torch.cuda.get_device_properties(gpu).uuid for gpu in range(torch.cuda.device_count())}
    while gpus:
        for place, gpu in itertools.product(range(cells_per_gpu), gpus):
            lock = FileLock(Path(tempfile.gettempdir(), f"oneclass-gpu-{gpus[gpu]}-{place}.lock"), mode=0o666)
            with suppress(Timeout):
                lock.acquire(timeout=0)
                return gpu, lock
        time.sleep(1)
    return None, None


def _lacks_weights(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, WeightsMissingError):
        error = error.__cause__ or error.__context__
    return error is not None


def _line(cell: Cell, record: Record) -> str:
    speed = f", {record['train_images_per_s']:,.0f} images/s" if record["train_images_per_s"] else ""
    return f"{_title(cell)}: {auroc_text(record)}  ({record['wall_s']:.0f} s{speed})"


def _title(cell: Cell) -> str:
    return f"{cell.name} {dataset_label(cell.dataset)} {cell.protocol} normal={cell.normal} seed={cell.seed}"
