"""Where cells run: processes of this machine, or the workers of a Ray or Dask cluster.

All three give :class:`concurrent.futures.Future`, so that a grid is the same on each.
"""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from loky import cpu_count, get_reusable_executor

from common.errors import InputError
from common.experiment.declaration import Backend
from common.experiment.forked import forked_context
from common.experiment.identity import first_seen
from common.presets import importable_folders, make_importable


@dataclass(frozen=True)
class Engine:
    """A running engine.

    Attributes:
        submit: Begins ``function(*args)`` in a worker; returns a future, whose result :func:`result_of` gives.
        lost: What a task raises whose process was killed, more often than the engine itself runs it again.
    """

    submit: Callable[..., "Future[Any]"]
    lost: tuple[type[Exception], ...]


@contextmanager
def engine(backend: Backend, jobs: int, share: float) -> Iterator[Engine]:
    """Context with workers: of a running cluster, or of this machine, where they end with the block.

    A task finds the modules that this process was made to find, and begins in this process's folder. Raises InputError if a
    package is not installed, or a cluster cannot be reached or used.

    Args:
        backend: ``loky`` starts processes on this machine; a single job runs in this process. ``ray`` connects to
            ``RAY_ADDRESS`` or the cluster that this machine belongs to, ``dask`` to ``DASK_SCHEDULER_ADDRESS``.
        jobs: Number of processes, where they are started here.
        share: Of a GPU, for each task; 0 where they run on CPUs.
    """
    if backend == "loky":
        running = _loky(jobs, forked_context() if share == 0 else None)
    elif backend == "ray":
        running = _ray(jobs, share)
    else:
        running = _dask(jobs)
    with running as executor:
        yield replace(executor, submit=partial(executor.submit, importable_folders(), os.getcwd()))


def result_of(future: "Future[Any]") -> Any:
    """Returns a task's result, or raises its exception; InputError if the worker lacks a module that this process has."""
    try:
        return future.result()
    except Exception as error:
        own: Exception = getattr(error, "cause", error)  # Ray wraps it
        if isinstance(own, ModuleNotFoundError):
            raise InputError(f"a worker has {own}: install oneclass on every machine of the cluster") from error
        raise own from None


def local_slots(device: str, cells_per_gpu: int) -> int:
    """Cells at a time on this machine: one per core, or ``cells_per_gpu`` for each GPU."""
    if device == "cuda":
        return max(1, torch.cuda.device_count()) * cells_per_gpu
    return int(cpu_count())


@contextmanager
def _loky(jobs: int, context: BaseContext | None) -> Iterator[Engine]:
    if jobs == 1:
        gc.freeze()  # as in a worker
        try:
            yield Engine(_call_here, ())
        finally:
            gc.unfreeze()
        return
    prepare = partial(_prepare_worker, os.getpid(), context is not None, dict(os.environ), dict(first_seen))
    pool = partial(get_reusable_executor, jobs, context=context, timeout=None, initializer=prepare)

    def submit(*task: Any) -> "Future[Any]":
        while True:
            with suppress(BrokenExecutor):  # a worker was killed since the last call: there is another pool at the next
                return pool().submit(_call, *task)

    try:
        yield Engine(submit, (BrokenExecutor,))
    finally:
        pool().shutdown(kill_workers=True)


@contextmanager
def _ray(jobs: int, share: float) -> Iterator[Engine]:
    ray = _import("ray")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError as error:
        if address := os.environ.get("RAY_ADDRESS"):
            raise InputError(
                f"no Ray cluster lets one in at RAY_ADDRESS={address}: start it, give its RAY_AUTH_TOKEN or unset the address"
            ) from error
        ray.init(address="local", num_cpus=jobs, include_dashboard=False, object_store_memory=100 * 2**20, **quiet)
    try:
        if share and not ray.cluster_resources().get("GPU"):
            raise InputError("the Ray cluster has no GPU: start a node that has one, or leave out --device cuda")
        task = ray.remote(_call).options(num_cpus=1, num_gpus=share, scheduling_strategy="SPREAD")
        lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        yield Engine(lambda *arguments: task.remote(*arguments).future(), lost)
    finally:
        ray.shutdown()


@contextmanager
def _dask(jobs: int) -> Iterator[Engine]:
    distributed = _import("distributed")
    address = _import("dask").config.get("scheduler-address", None)
    here: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "silence_logs": "ERROR"}
    with nullcontext(address) if address else distributed.LocalCluster(n_workers=jobs, **here) as cluster:
        try:
            client = distributed.Client(cluster, timeout=30)
            client.wait_for_workers(1, timeout=30)
        except (OSError, TimeoutError) as error:
            raise InputError(f"no Dask scheduler with a worker answers at {address}: start both") from error
        with client:
            if max(client.nthreads().values()) > 1:
                raise InputError("a Dask worker takes one cell at a time: start it with --nthreads 1, and --nworkers for more")
            yield Engine(partial(client.get_executor(pure=False).submit, _call), (distributed.scheduler.KilledWorker,))


def _import(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(f"there is no package '{package}': pip install -e '.[cluster]'") from error


def _call(folders: Sequence[str], current: str, function: Callable[..., Any], *args: Any) -> Any:
    """Runs a task in a worker, with the folder and the import path of the process that submitted it."""
    make_importable(*map(Path, folders))
    before = os.getcwd()
    if os.path.isdir(current):
        os.chdir(current)
    try:
        return function(*args)
    finally:
        os.chdir(before)


def _call_here(*task: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(_call(*task))
    return future


def _prepare_worker(grid: int, forked: bool, environment: Mapping[str, str], code: Mapping[Path, str]) -> None:
    """Prepares a worker: it takes over the grid's environment, and ends when the grid ends, even by ``kill -9``.

    Of data it leaves it to the grid's process to say what is left out.
    """
    os.environ.update(environment)
    gc.freeze()  # what is imported is no garbage: a collection after each cell looks only at what the cell has left
    first_seen.update(code)
    logging.getLogger("common.data").setLevel(logging.ERROR)

    def watch() -> None:
        if forked:
            parent_process().join()  # type: ignore[union-attr]
        while os.getppid() == grid:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
