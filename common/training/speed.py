"""Memory layout and fused optimisers: the same arithmetic, faster."""

from collections.abc import Iterable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class Speed(Callback):
    """Makes training faster and changes numbers by rounding alone; every run has this callback.

    ``docs/speed.md`` says what it gains.

    Args:
        channels_last: Convolutions work on channels-last memory, as the data module's batches are.
        fused: Adam's step is one kernel.
    """

    def __init__(self, channels_last: bool = True, fused: bool = True) -> None:
        self.channels_last, self.fused = channels_last, fused

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Converts the module to channels-last. Runs before DDP, which mixes up gradients whose strides change later."""
        if self.channels_last:
            pl_module.to(memory_format=torch.channels_last)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switches optimisers to fused steps, before their states are restored."""
        if self.fused:
            fuse(trainer.optimizers)


def fuse(optimizers: Iterable[Optimizer]) -> None:
    """Lets the optimisers that can step in one fused kernel. Call it before the first step.

    Example:
        >>> adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        >>> fuse([adam])
        >>> adam.param_groups[0]["fused"]
        True
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if "fused" in group:
                group |= {"fused": True, "foreach": False}
