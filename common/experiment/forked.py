"""Workers that need no imports of their own: copies of one process that has imported what every cell needs.

PyTorch and Lightning take seconds to import. On Linux one process does it, beside the one that plans the grid, and each worker
is a fork of it. A GPU's driver does not survive a fork, so workers that use one are started as loky starts them.
"""

import sys
from multiprocessing import forkserver, get_context
from multiprocessing.context import BaseContext

PRELOADED = ["common.experiment.run", "autoencoder", "alocc", "ocgan", "ocnn"]


def forked_context() -> BaseContext | None:
    """How loky starts such workers; None where it starts them its own way."""
    if sys.platform != "linux":
        return None
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def begin_imports() -> None:
    """Starts the process, so that it imports while this one reads data and plans."""
    if forked_context() is not None:
        forkserver.ensure_running()
