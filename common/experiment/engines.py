"""Where cells run: processes of this machine, or the workers of a Ray or Dask cluster, all of them behind joblib."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from joblib import cpu_count
from joblib.parallel import ParallelBackendBase

from common.errors import InputError

Backend = Literal["loky", "ray", "dask"]


@dataclass(frozen=True)
class Engine:
    """A running engine.

    Attributes:
        backend: For :class:`joblib.Parallel`.
        lost: What a task raises whose process was killed, more often than the engine itself runs it again.
    """

    backend: str | ParallelBackendBase
    lost: tuple[type[Exception], ...]


class Futures(ParallelBackendBase):  # type: ignore[misc]
    """joblib over anything that takes a function and gives a :class:`concurrent.futures.Future`.

    Ray's own joblib backend is a multiprocessing pool, which gives no results one by one, hands tasks to busy workers and
    ends with the first that is killed; joblib's Dask backend waits for ever for a task that Dask gave up, ignores
    ``n_jobs`` and spreads the loops inside of a task over the cluster too.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from joblib import Parallel, delayed
        >>> with ThreadPoolExecutor(2) as pool:
        ...     Parallel(n_jobs=2, backend=Futures(pool.submit))(delayed(abs)(i) for i in (-1, -2))
        [1, 2]
    """

    supports_retrieve_callback = True

    def __init__(self, submit: Callable[[Callable[[], Any]], "Future[Any]"]) -> None:
        super().__init__()
        self._submit = submit

    def effective_n_jobs(self, n_jobs: int) -> int:
        """At least 2, since joblib runs a single job itself; ``pre_dispatch`` says how many tasks there are at a time."""
        return max(2, n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[["Future[Any]"], None] | None = None) -> "Future[Any]":
        """Begins a task."""
        future = self._submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: "Future[Any]") -> Any:
        """Its result.

        Raises:
            InputError: The workers have not what this process has.
        """
        try:
            return out.result()
        except Exception as error:
            own: Exception = getattr(error, "cause", error)  # what Ray wraps
            if isinstance(own, ModuleNotFoundError):
                raise InputError(f"a worker has {own}: install oneclass on every machine of the cluster") from error
            raise own from None


@contextmanager
def engine(backend: Backend, jobs: int, share: float) -> Iterator[Engine]:
    """The engine by its name, from the cluster that is there, else from one that is started here and ended with the block.

    Args:
        backend: ``loky`` are processes of this machine. ``ray`` connects to ``RAY_ADDRESS`` or the cluster that this machine
            belongs to, ``dask`` to ``DASK_SCHEDULER_ADDRESS``.
        jobs: Processes, where they are started here.
        share: Of a GPU, for each cell; 0 where they run on CPUs.

    Raises:
        InputError: The package is not installed, or the cluster cannot be reached or used.
    """
    if backend == "loky":
        yield Engine("loky", (BrokenExecutor,))
    elif backend == "ray":
        with _ray(jobs, share) as running:
            yield running
    else:
        with _dask(jobs) as running:
            yield running


def local_slots(device: str, cells_per_gpu: int) -> int:
    """Cells at a time on this machine: one per core, or ``cells_per_gpu`` for each GPU."""
    return max(1, torch.cuda.device_count()) * cells_per_gpu if device == "cuda" else cpu_count()


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
        task = ray.remote(_call).options(num_cpus=1, num_gpus=share, scheduling_strategy="SPREAD")
        if share and not ray.cluster_resources().get("GPU"):
            raise InputError("the Ray cluster has no GPU: start a node that has one, or leave out --device cuda")
        lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        yield Engine(Futures(lambda function: task.remote(function).future()), lost)
    finally:
        ray.shutdown()


@contextmanager
def _dask(jobs: int) -> Iterator[Engine]:
    distributed = _import("distributed")
    address = _import("dask").config.get("scheduler-address", None)
    where = address or distributed.LocalCluster(
        n_workers=jobs, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs="ERROR"
    )
    try:
        client = distributed.Client(where, timeout=30)
        client.wait_for_workers(1, timeout=30)
    except (OSError, TimeoutError) as error:
        raise InputError(f"no Dask scheduler with a worker answers at {address}: start both") from error
    try:
        if max(client.nthreads().values()) > 1:
            raise InputError("a Dask worker takes one cell at a time: start it with --nthreads 1, and --nworkers for more")
        submit = client.get_executor(pure=False).submit
        yield Engine(Futures(lambda function: submit(_call, function)), (distributed.scheduler.KilledWorker,))
    finally:
        client.close()
        if address is None:
            where.close()


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _import(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(f"there is no package '{package}': pip install -e '.[cluster]'") from error
