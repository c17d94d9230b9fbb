"""What every test and doctest has.

Heavy modules are imported by the fixtures: under pytest-xdist the controller reads this file too.
"""

import os
import sys
from contextlib import contextmanager

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""
# pytest-xdist gives every core a process of its own; threads and workers beside them would wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _one_core():
    """Module-wide fixtures compute by one thread too, and a grid's cells run in this process unless a test gives ``--jobs``."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        yield


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    """Whatever ran before in this process, the random numbers of a test are the same."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("ONECLASS_DATA", raising=False)


@pytest.fixture(autouse=True)
def _own_search_path(monkeypatch):
    """Folders of presets that a test reads are searched for classes, but not by the tests that follow."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def fork():
    """Begins a :class:`forks.Fork`, which ends with the test."""
    from forks import Fork

    forks = []

    def begin(*arguments, **options):
        forks.append(Fork(*arguments, **options))
        return forks[-1]

    yield begin
    for each in forks:
        each.end()


@contextmanager
def _without_drawing():
    from forks import one_pixel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.training.tensorboard._render", one_pixel)
        yield


@pytest.fixture(scope="module")
def blank_figures():
    """For modules whose runs have figures that no test looks at: they are made and saved, but not drawn."""
    with _without_drawing():
        yield


@pytest.fixture
def blank_figures_from_here():
    """As ``blank_figures``, but the module's own fixtures have drawn theirs."""
    with _without_drawing():
        yield
