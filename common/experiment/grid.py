"""Many cells: what is done is skipped, the rest runs side by side."""

import gc
import itertools
import os
import platform
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.data.datamodule import default_root
from common.errors import InputError, WeightsMissingError
from common.experiment.cell import Cell, Record, Settings, finished, run
from common.experiment.engines import Backend, engine, local_slots

ATTEMPTS = 3
"""How often a cell is begun whose process is killed."""


class Failure(NamedTuple):
    """A cell that ended in an error, and what the error said."""

    cell: Cell
    message: str


class _Grid(NamedTuple):
    """One call of :func:`run_grid`, as its workers see it."""

    name: str
    settings: Settings
    cells_per_gpu: int


def run_grid(
    cells: Sequence[Cell],
    settings: Settings,
    jobs: int | None,
    console: Console,
    backend: Backend = "loky",
    cells_per_gpu: int = 1,
) -> list[Failure]:
    """Runs every cell that has no record yet.

    One process per job, each with its share of the cores; how many threads a cell gets depends on ``jobs`` and the number
    of cells asked for, never on how many are left or where they run, so that a grid which was stopped goes on to the same
    numbers, on any engine.

    A cell whose process is killed is begun again, from its checkpoint. Where one killed worker takes the others along, as
    loky's does, a cell that was hit twice waits until it can run by itself, so that in the end only the one at fault fails.
    Of several grids over the same runs folder, each leaves a cell alone that another is at, and reads its record in the end.

    Args:
        cells: What to run.
        settings: Common to all.
        jobs: Cells at a time; by default one per core of this machine, or ``cells_per_gpu`` for each GPU, or as many as a
            cluster takes.
        console: For one line per finished cell, and the bar.
        backend: As :func:`common.experiment.engines.engine` reads it.
        cells_per_gpu: With the device ``cuda``, how many cells share a GPU.

    Returns:
        The cells that failed; their traceback is in ``error.txt`` in the cell's folder.

    Raises:
        InputError: What the user can mend ends the grid at once; but for a net's weights that cannot be had, whose cells fail.
    """
    limit = min(jobs or local_slots(settings.device, cells_per_gpu), len(cells))
    settings = replace(settings, threads=max(1, torch.get_num_threads() // limit))
    if backend != "loky":
        settings = replace(settings, runs=settings.runs.absolute(), root=(settings.root or default_root()).absolute())
    left = [cell for cell in cells if finished(cell, settings) is None]
    grid = _Grid(uuid4().hex, settings, cells_per_gpu)
    failures: list[Failure] = []

    def done(cell: Cell, result: Record | str) -> None:
        left.remove(cell)
        console.print(_line(cell, result), highlight=False, soft_wrap=True)
        if isinstance(result, str):
            failures.append(Failure(cell, result))

    if not left:
        return failures
    if len(cells) == 1 and backend == "loky":
        shown = grid._replace(settings=replace(settings, progress=console.is_terminal))
        _, result = _attempt(cells[0], shown, wait=True)
        assert result is not None
        done(cells[0], result)
        return failures
    columns = (
        TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    )  # fmt: skip
    share = 1 / cells_per_gpu if settings.device == "cuda" else 0
    with engine(backend, limit, share) as running, Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(cells), completed=len(cells) - len(left))
        at_a_time = limit if jobs or backend == "loky" else "all"
        begin = {"initializer": _end_with, "initargs": (os.getpid(),)} if backend == "loky" else {}
        parallel = Parallel(
            limit, backend=running.backend, return_as="generator_unordered", batch_size=1, pre_dispatch=at_a_time, **begin
        )
        wait, in_vain = False, 0
        while left:
            begun = {cell: _begun(cell, grid) for cell in left}
            now = [cell for cell in left if begun[cell] < ATTEMPTS - 1] or left[:1]
            try:
                for cell, result in parallel(delayed(_attempt)(cell, grid, wait) for cell in now):
                    if result is not None:
                        done(cell, result)
                        bar.advance(task)
                wait = True
            except running.lost as error:
                in_vain = in_vain + 1 if begun == {cell: _begun(cell, grid) for cell in left} else 0
                if in_vain == ATTEMPTS:
                    raise InputError(f"workers are killed before they begin a cell: {error}") from error
                console.print("a worker was killed: its cells are begun again", highlight=False, soft_wrap=True)
    return failures


def _attempt(cell: Cell, grid: _Grid, wait: bool) -> tuple[Cell, Record | str | None]:
    """The record, or what went wrong, or None where another grid is at this cell and is not to be waited for."""
    if not grid.settings.runs.is_dir():
        raise InputError(f"{platform.node()} has no folder {grid.settings.runs}: share runs and data, at one path everywhere")
    lock = _beside(cell, grid, "lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=-1 if wait else 0):
            return cell, _run(cell, grid)
    except Timeout:
        return cell, None
    except OSError as error:
        raise InputError(f"cannot write in {lock.parent}: {error.strerror or error}") from error


def _run(cell: Cell, grid: _Grid) -> Record | str:
    begun, note, settings = _begun(cell, grid), _beside(cell, grid, "begun"), grid.settings
    try:
        if begun == ATTEMPTS:
            raise ChildProcessError(f"its process was killed {begun} times, as where memory runs out: try fewer --jobs")
        note.write_text(f"{grid.name} {begun + 1} {platform.node()} {os.getpid()}")
        if settings.device == "cuda":
            settings = replace(settings, gpu=_gpu(grid.cells_per_gpu))
        return run(cell, replace(settings, force=settings.force and not begun))
    except KeyboardInterrupt:
        raise
    except InputError as error:
        if not _is_missing(error):
            raise
        return str(error)
    except SystemExit:
        raise KeyboardInterrupt from None
    except Exception as error:
        directory = cell.directory(settings.runs)
        directory.mkdir(exist_ok=True)
        (directory / "error.txt").write_text(traceback.format_exc())
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        note.unlink(missing_ok=True)
        gc.collect()  # trainers hold themselves in cycles, and the next cell wants the memory


def _beside(cell: Cell, grid: _Grid, ending: str) -> Path:
    """A file that outlives the cell's folder."""
    directory = cell.directory(grid.settings.runs)
    return directory.with_name(f".{directory.name}.{ending}")


def _begun(cell: Cell, grid: _Grid) -> int:
    """How often this grid has begun a cell that has not ended since."""
    note = _beside(cell, grid, "begun")
    name, times, *_ = (note.read_text() if note.is_file() else "").split() or ("", "0")
    return int(times) if name == grid.name else 0


@cache
def _gpu(cells_per_gpu: int) -> int | None:
    """The GPU of this process, which holds a place on it until it ends; the emptiest of those that it sees."""
    gpus = {gpu: torch.cuda.get_device_properties(gpu).uuid for gpu in range(torch.cuda.device_count())}
    while gpus:
        for place, gpu in itertools.product(range(cells_per_gpu), gpus):
            lock = FileLock(Path(tempfile.gettempdir(), f"oneclass-gpu-{gpus[gpu]}-{place}.lock"), mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _HELD.append(lock)
            return gpu
        time.sleep(1)
    return None


_HELD: list[FileLock] = []


def _is_missing(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, WeightsMissingError):
        error = error.__cause__ or error.__context__
    return error is not None


def _end_with(grid: int) -> None:
    """A grid that is killed takes its workers along, even those that begin, so that the next finds none in its cells."""

    def watch() -> None:
        while os.getppid() == grid:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _line(cell: Cell, result: Record | str) -> str:
    name = f"{cell.method}-{cell.preset} {cell.dataset} {cell.protocol} normal={cell.normal} seed={cell.seed}"
    if isinstance(result, str):
        return f"[red]failed[/red] {name}: {result}"
    speed = f", {result['train_images_per_s']:,.0f} images/s" if result["train_images_per_s"] else ""
    auroc = result["metrics"][result["score"]]["auroc"]
    return f"{name}: AUROC {auroc:.4f}  ({result['wall_s']:.0f} s{speed})"
