"""Grids whose workers are killed, that meet one another, and that run on Ray and Dask clusters of this machine."""

import contextlib
import gc
import json
import os
import pkgutil
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, Future, wait
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forks import run_module
from rich.console import Console

from common.errors import InputError
from common.experiment import Cell, Experiment, Grid, engines, grid, run_experiment
from common.experiment.cell import Settings
from common.experiment.engines import Engine, engine, local_slots, result_of
from common.experiment.grid import run_grid
from common.experiment.run import run

pytestmark = pytest.mark.usefixtures("blank_figures")

psutil = pytest.importorskip("psutil")

ROOT = Path(__file__).parents[1]
LONG = [Cell("autoencoder-smoke", "digits", "standard", normal, 0) for normal in "345"]
CELLS = [*LONG[:2], Cell("classical-iforest", "digits", "standard", "3", 0)]
EPOCHS = 10


def settings(runs, **options):
    runs.mkdir(exist_ok=True)
    return Settings(runs=runs, device="cpu", max_epochs=EPOCHS, **options)


def results(cells, runs):
    """Of each cell the scores and what the record says, but for times."""
    found = []
    for cell in cells:
        record = json.loads((cell.directory(runs) / "metrics.json").read_text())
        scores = (cell.directory(runs) / "scores.csv").read_text()
        found.append((scores, record["metrics"], record["selected_epoch"], record["identity"]))
    return found


def at(cell, runs):
    """The process that is at a cell, where it lives."""
    directory = cell.directory(runs)
    with contextlib.suppress(FileNotFoundError, IndexError):
        pid = int(directory.with_name(f".{directory.name}.begun").read_text().split()[3])
        return pid if psutil.pid_exists(pid) else None


class Killer(threading.Thread):
    """Kills the process that is at a cell, so many times."""

    def __init__(self, cell, runs, times):
        super().__init__(daemon=True)
        self.cell, self.runs, self.times, self.over = cell, runs, times, threading.Event()

    def run(self):
        while self.times and not self.over.wait(0.02):
            if pid := at(self.cell, self.runs):
                os.kill(pid, signal.SIGKILL)
                self.times -= 1
                while psutil.pid_exists(pid) and not self.over.wait(0.02):
                    pass

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The cells' results, one after the other in this process."""
    runs = tmp_path_factory.mktemp("alone")
    for cell in {*LONG, *CELLS}:
        run(cell, settings(runs, threads=1))
    return runs


def test_a_cell_that_kills_its_workers_fails_and_takes_no_other_along(alone, tmp_path, capsys):
    with Killer(LONG[0], tmp_path, times=100):
        failures = run_grid(LONG[:2], settings(tmp_path), 2, Console())
    assert list(failures) == LONG[:1]
    assert "its process was killed 3 times" in failures[LONG[0]]
    assert "killed 3 times" in (LONG[0].directory(tmp_path) / "error.txt").read_text()
    assert results(LONG[1:2], tmp_path) == results(LONG[1:2], alone)
    assert capsys.readouterr().out.count("AUROC") == 1
    assert run_grid(LONG, settings(tmp_path), 1, Console()) == {}
    assert results(LONG, tmp_path) == results(LONG, alone)


def test_two_grids_at_once_share_the_cells(alone, tmp_path, fork):
    flags = ["--datasets", "digits", "--presets", "smoke", "--normal", "3", "4", "5", "--seeds", "0", "--jobs", "1"]
    command = ["experiments.autoencoder", *flags, "--max-epochs", str(EPOCHS), "--runs", tmp_path]
    grids = [fork(run_module, *command) for _ in range(2)]
    assert [each.wait() for each in grids] == [0, 0], [each.output for each in grids]
    assert results(LONG, tmp_path) == results(LONG, alone)
    for cell in LONG:
        runs_of_the_cell = list(cell.directory(tmp_path).glob("events.out.tfevents*"))
        assert len({path.name.split(".")[-2] for path in runs_of_the_cell}) == 1, "one process ran it"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(*commands):
    """Processes in the background, each with a group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [subprocess.Popen(each, env=environment, start_new_session=True, **quiet) for each in commands]


def ended(processes):
    for process in processes:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.wait()


@pytest.fixture
def ray_cluster(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # is read when Ray is imported
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    pytest.importorskip("ray", reason="pip install -e '.[cluster]'")
    ray = str(Path(sys.executable).with_name("ray"))
    port = free_port()
    small = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
    head = [ray, "start", "--head", f"--port={port}", "--include-dashboard=false", *small]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        processes = started([*head, f"--temp-dir={folder}"])
        wait_for(port)
        processes += started([ray, "start", f"--address=127.0.0.1:{port}", *small])
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        yield
        ended(processes)


@pytest.fixture
def dask_cluster(monkeypatch):
    dask = pytest.importorskip("dask", reason="pip install -e '.[cluster]'")
    pytest.importorskip("distributed", reason="pip install -e '.[cluster]'")
    port = free_port()
    command = [str(Path(sys.executable).with_name("dask"))]
    processes = started([*command, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"])
    worker = ["worker", f"tcp://127.0.0.1:{port}", "--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
    processes += started([*command, *worker])
    with dask.config.set({"scheduler-address": f"tcp://127.0.0.1:{port}"}):  # as DASK_SCHEDULER_ADDRESS does
        yield
    ended(processes)


def wait_for(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the cluster does not start")


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_cluster_gives_the_records_of_one_machine_though_a_worker_is_killed(
    backend, alone, tmp_path, capsys, request, monkeypatch
):
    request.getfixturevalue(f"{backend}_cluster")
    with Killer(CELLS[0], tmp_path, times=1) as killer:
        failures = run_grid(CELLS, settings(tmp_path), 2, Console(), backend)
    assert failures == {}
    assert killer.times == 0, "no worker was killed"
    assert results(CELLS, tmp_path) == results(CELLS, alone)
    assert capsys.readouterr().out.count("AUROC") == len(CELLS)
    workers_find_what_this_process_finds(backend, tmp_path, monkeypatch)


def test_a_worker_of_this_machine_finds_what_this_process_finds(tmp_path, monkeypatch):
    workers_find_what_this_process_finds("loky", tmp_path, monkeypatch)


def workers_find_what_this_process_finds(backend, tmp_path, monkeypatch):
    """Modules in the folders made importable after the workers began, and files below the current folder."""
    modules, current = tmp_path / "modules", tmp_path / "current"
    modules.mkdir()
    current.mkdir()
    (modules / "brought_along.py").write_text("NUMBER = 7")
    monkeypatch.setattr(engines, "importable_folders", lambda: [str(modules)])
    monkeypatch.chdir(current)
    with engine(backend, 2, 0) as executor:
        monkeypatch.chdir(tmp_path)
        assert result_of(executor.submit(pkgutil.resolve_name, "brought_along:NUMBER")) == 7
        assert result_of(executor.submit(os.getcwd)) == str(current)
        with pytest.raises(InputError, match="a worker has No module named 'nowhere'"):
            result_of(executor.submit(pkgutil.resolve_name, "nowhere:NUMBER"))


@pytest.mark.parametrize("package", ["ray", "distributed"])
def test_a_missing_package_is_named(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    experiment = Experiment("autoencoder", "A trial", Grid(("smoke",), ("digits",)), seeds=(0,))
    backend = {"distributed": "dask"}.get(package, package)
    with pytest.raises(SystemExit) as exited:
        run_experiment(experiment, ["--normal", "3", "--runs", str(tmp_path), "--backend", backend])
    assert exited.value.code == 2
    assert f"there is no package '{package}': pip install -e '.[cluster]'" in capsys.readouterr().err


def test_collections_between_cells_pass_over_what_is_imported_and_the_process_is_left_as_it_was():
    with engine("loky", 1, 0):
        assert len(gc.get_objects()) < gc.get_freeze_count()
    assert gc.get_freeze_count() == 0


def test_a_machine_without_the_runs_folder_is_told_of(tmp_path):
    work = grid._Work("a", Settings(runs=tmp_path / "elsewhere"), 1)
    with pytest.raises(InputError, match=r"has no folder .*elsewhere: share runs and data"):
        grid._attempt(LONG[0], work, patient=False)


def test_cells_spread_over_gpus_and_share_them(tmp_path, monkeypatch):
    """Two GPUs as a machine that has none imagines them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid=f"gpu-{gpu}"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert local_slots("cuda", 3) == 6
    places = [grid._place.__wrapped__(2) for _ in range(4)]
    assert [gpu for gpu, _ in places] == [0, 1, 0, 1]
    fifth = []
    waiting = threading.Thread(target=lambda: fifth.append(grid._place.__wrapped__(2)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    places[1][1].release()
    waiting.join(10)
    assert fifth[0][0] == 1


class Script:
    """An engine that runs nothing; each cell comes to what ``play`` says, which hears how often the cell was begun."""

    def __init__(self, play):
        self.play, self.begun, self.submitted = play, Counter(), []
        self.engine = Engine(self.submit, (BrokenExecutor,))

    def submit(self, function, cell, work, patient):
        assert function is grid._attempt
        self.submitted.append((cell, patient))
        self.begun[cell] += 1
        future = Future()
        try:
            future.set_result(self.play(cell, work, self.begun[cell]))
        except BrokenExecutor as error:
            future.set_exception(error)
        return future

    def results(self, runs, at_a_time):
        work = grid._Work("a", settings(runs), 1)
        return dict(grid._results(LONG, work, self.engine, at_a_time, Console()))


def killed_at(cell, work, times):
    note = grid._beside(cell, work, "begun")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{work.name} {times} host 1")
    raise BrokenExecutor


def test_a_cell_whose_workers_were_killed_twice_runs_last_and_by_itself(tmp_path, capsys, monkeypatch):
    together = []

    def noted(running, return_when):
        together.append(set(running.values()))
        return wait(running, return_when=return_when)

    def play(cell, work, times):
        return killed_at(cell, work, times) if cell in LONG[:2] and times < 3 else "over"

    monkeypatch.setattr(grid, "wait", noted)
    assert Script(play).results(tmp_path, at_a_time=2) == dict.fromkeys(LONG, "over")
    first, second, third = LONG
    assert together[0] == {first, second}
    assert [cells for cells in together if third in cells] == together[1:2]
    assert sorted(map(list, together[-2:])) == [[first], [second]]
    assert capsys.readouterr().out.count("a worker was killed") == 4


def test_cells_of_another_grid_are_waited_for_last(tmp_path):
    script = Script(lambda cell, work, times: None if cell == LONG[0] and times == 1 else "over")
    assert script.results(tmp_path, at_a_time=1) == dict.fromkeys(LONG, "over")
    assert script.submitted == [(LONG[0], False), (LONG[1], False), (LONG[2], False), (LONG[0], True)]


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_workers_that_never_begin_a_cell_end_the_grid(at_a_time, tmp_path):
    kills = []

    def play(cell, work, times):
        if len(script.submitted) > len(kills) * at_a_time:  # a pool of processes ends all of its tasks with one error
            kills.append(BrokenExecutor("out of memory"))
        raise kills[-1]

    script = Script(play)
    with pytest.raises(InputError, match="workers are killed before they begin a cell: out of memory"):
        script.results(tmp_path, at_a_time)
    assert len(script.submitted) == 3 * at_a_time
