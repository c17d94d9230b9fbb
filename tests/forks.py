"""Commands in processes of their own that need no imports: forks of the process whose copies a grid's workers are, too."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.experiment import command, engines
from common.experiment.forked import PRELOADED
from common.training import tensorboard

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


class _Forking(multiprocessing.context.ForkContext):
    """A context that loky accepts: it knows forks by this name, and refuses them lest a thread holds a lock."""

    def get_start_method(self, allow_none=False):
        return "loky"


class Fork:
    """A function in a process of its own, which leads a group of its own: ``os.killpg(fork.pid, …)`` meets all that it starts.

    It begins as a command does that is started from a terminal: with an environment, a folder, an output, and ears for
    Ctrl-C. Numbers are computed by one thread, and figures are blank.

    Args:
        function: Of a module that the process can import.
        *arguments: Of the function, as are the other ``options``.
        folder: Its current one.
    """

    def __init__(self, function, *arguments, folder=".", **options):
        descriptor, self._output = tempfile.mkstemp()
        os.close(descriptor)
        where = os.path.abspath(folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        call = partial(function, *arguments, **options)
        self._process = CONTEXT.Process(target=_begin, args=(call, where, environment, self._output))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """As :class:`subprocess.Popen` has it; None while the process runs."""
        return self._process.exitcode

    @property
    def output(self):
        """All that was printed so far, and the errors."""
        return Path(self._output).read_text(encoding="utf-8")

    def wait(self, timeout=300):
        """Returns the exit status."""
        self._process.join(timeout)
        assert self.returncode is not None, f"it goes on and on\n{self.output}"
        return self.returncode

    def end(self):
        """Kills what still runs, and forgets the output."""
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()
        Path(self._output).unlink()


def one_pixel(figure):
    """In place of a figure's drawing, which takes half of a short run's time."""
    return np.zeros((1, 1, 3), np.uint8)


def run_module(name, *words, forked_workers=False):
    """``python -m name words``.

    Args:
        name: Of the module.
        *words: Of the command.
        forked_workers: Whether the workers of a grid are forks of its own process, so that nobody has to import anything.
    """
    if forked_workers:
        command.begin_imports = lambda: None
        engines.forked_context = _Forking
    sys.path.insert(0, os.getcwd())
    sys.argv[1:] = map(str, words)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _begin(call, folder, environment, output):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    tensorboard._render = one_pixel
    call()
