"""Workers that need no imports of their own: copies of one process that has imported what every cell needs.

PyTorch and Lightning take seconds to import. On Linux one process does it, beside the one that plans the grid, and each worker
is a fork of it. A GPU's driver does not survive a fork, so workers that use one are started as loky starts them.
"""

import sys
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import Any

from common.presets import REPOSITORY

PAPERS = sorted(path.parents[1].name for path in REPOSITORY.glob("*/configs/smoke.yaml"))
PRELOADED = ["common.experiment.run", *PAPERS]
"""Modules that every worker has from the start."""

if sys.platform == "linux":
    from multiprocessing import forkserver
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    class _Worker(ForkServerProcess):
        """A process that leaves the user's script alone; multiprocessing would run it again in each."""

        @staticmethod
        def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing calls it so
            script = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                return ForkServerProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = script

    class _Context(ForkServerContext):
        Process = _Worker


def forked_context() -> BaseContext | None:
    """Returns the context with which loky starts such workers, or None on other systems than Linux."""
    if sys.platform != "linux":
        return None
    context = _Context()
    context.set_forkserver_preload(PRELOADED)
    return context


def begin_imports() -> None:
    """Starts the importing process early, so that it works while this one reads data and plans."""
    if sys.platform == "linux":
        forked_context()
        forkserver.ensure_running()
