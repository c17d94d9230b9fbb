"""Seeds by the run's seed and the epoch alone, so that a resumed run repeats the killed one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
import torch


def epoch_seed(epoch: int) -> int:
    """A 32-bit seed for one epoch of a run; the run's seed is the one given to Lightning's ``seed_everything``.

    Example:
        >>> epoch_seed(0) == epoch_seed(0) != epoch_seed(1)
        True
    """
    run = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return int(np.random.SeedSequence([run, epoch]).generate_state(1)[0])


def epoch_generator(epoch: int) -> torch.Generator:
    """A CPU generator seeded by :func:`epoch_seed`.

    Example:
        >>> first, second = (torch.rand(3, generator=epoch_generator(0)) for _ in range(2))
        >>> torch.equal(first, second)
        True
    """
    return torch.Generator().manual_seed(epoch_seed(epoch))


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Context with its own seed for PyTorch and :func:`epoch_seed`; both are restored afterwards.

    Both are the process's, so that threads take turns.

    Example:
        >>> def noise():
        ...     with isolated(seed=7):
        ...         return torch.rand(3)
        >>> torch.equal(noise(), noise())
        True
    """
    with _TURN, torch.random.fork_rng(range(torch.cuda.device_count())):
        before = os.environ.pop("PL_GLOBAL_SEED", None)
        os.environ["PL_GLOBAL_SEED"] = str(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            del os.environ["PL_GLOBAL_SEED"]
            if before is not None:
                os.environ["PL_GLOBAL_SEED"] = before


_TURN = Lock()
