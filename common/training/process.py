"""Sets up a process for training: device, memory and the libraries' messages."""

import ctypes
import logging
import os
import platform
import warnings

import torch


def chosen_device(name: str) -> str:
    """Resolves ``auto`` to ``cuda`` or ``cpu``; Apple's GPUs lack float64, which thresholds need."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def configure_process() -> None:
    """Prepares a process for training: silences Lightning's tips and lets the C library keep its memory.

    glibc gives every large block back to the system and asks for it anew in the next step; to let it keep them is worth
    5 to 15 % of the speed of small nets on a CPU, and changes no number. Without a GPU it hides CUDA: otherwise every
    optimiser step queries the driver, 0.25 ms each.
    """
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1
        for parameter in (mmap_threshold, trim_threshold):
            ctypes.CDLL(None).mallopt(parameter, 2**30)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch.utils.tensorboard")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
