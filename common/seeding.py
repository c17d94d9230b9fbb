"""Randomness that depends on the seed and the epoch alone, so that a run which was killed repeats itself."""

import os

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
    """A CPU generator seeded by :func:`epoch_seed`."""
    return torch.Generator().manual_seed(epoch_seed(epoch))
