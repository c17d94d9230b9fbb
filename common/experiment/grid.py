"""Many cells: what is done is skipped, the rest runs side by side."""

import gc
import os
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from joblib import Parallel, cpu_count, delayed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.errors import InputError, WeightsMissingError
from common.experiment.cell import Cell, Record, Settings, finished, run


class Failure(NamedTuple):
    """A cell that ended in an error, and what the error said."""

    cell: Cell
    message: str


def run_grid(cells: Sequence[Cell], settings: Settings, jobs: int | None, console: Console) -> list[Failure]:
    """Runs every cell that has no record yet.

    One process per job, each with its share of the cores; how many threads a cell gets depends on ``jobs`` and the number
    of cells asked for, never on how many are left, so that a grid which was stopped goes on to the same numbers.

    Args:
        cells: What to run.
        settings: Common to all.
        jobs: Cells at a time; one per core by default, and one at a time on a GPU.
        console: For one line per finished cell, and the bar.

    Returns:
        The cells that failed; their traceback is in ``error.txt`` in the cell's folder.

    Raises:
        InputError: What the user can mend ends the grid at once; but for a net's weights that cannot be had, whose cells fail.
    """
    jobs = min(jobs or (1 if settings.device == "cuda" else cpu_count()), len(cells))
    settings = replace(settings, threads=max(1, torch.get_num_threads() // jobs))
    left = [cell for cell in cells if finished(cell, settings) is None]
    if len(cells) == 1:
        results = [_attempt(cell, replace(settings, progress=console.is_terminal), os.getpid()) for cell in left]
        for cell, result in results:
            console.print(_line(cell, result), highlight=False, soft_wrap=True)
        return [Failure(cell, result) for cell, result in results if isinstance(result, str)]
    failures: list[Failure] = []
    columns = (
        TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(cells), completed=len(cells) - len(left))
        parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        for cell, result in parallel(delayed(_attempt)(cell, settings, os.getpid()) for cell in left):
            bar.console.print(_line(cell, result), highlight=False, soft_wrap=True)
            bar.advance(task)
            if isinstance(result, str):
                failures.append(Failure(cell, result))
    return failures


def _attempt(cell: Cell, settings: Settings, grid: int) -> tuple[Cell, Record | str]:
    if os.getpid() != grid:
        _end_with(grid)
    try:
        return cell, run(cell, settings)
    except KeyboardInterrupt:
        raise
    except InputError as error:
        if not _is_missing(error):
            raise
        return cell, str(error)
    except SystemExit:
        raise KeyboardInterrupt from None
    except Exception as error:
        (cell.directory(settings.runs) / "error.txt").write_text(traceback.format_exc())
        return cell, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        gc.collect()  # trainers hold themselves in cycles, and the next cell wants the memory


def _is_missing(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, WeightsMissingError):
        error = error.__cause__ or error.__context__
    return error is not None


@cache
def _end_with(grid: int) -> None:
    """A grid that is killed takes its workers along, so that the next one does not find them in its cells."""

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
