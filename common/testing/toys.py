"""Trainings that take a second, on toy data, for tests of modules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import getmembers, isfunction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer

from common.data import Sample
from common.data.loaders import ResidentLoader
from common.module import OneClassModule

Factory = Callable[[Sequence[int]], OneClassModule]
"""A shape, ``(C, H, W)`` or ``(F,)``, to a new module that trains in a second."""

SHAPE = (1, 16, 16)
N = 64


def toy_samples(n: int = N, shape: Sequence[int] = SHAPE, seed: int = 0, anomalous: bool = False) -> Sample:
    """Normal samples are smooth waves in [0, 1] that differ in phase; anomalies are noise of the same mean and range.

    Example:
        >>> toy_samples(3).image.shape
        torch.Size([3, 1, 16, 16])
    """
    random = torch.Generator().manual_seed(seed)
    if anomalous:
        image = torch.rand(n, *shape, generator=random)
    else:
        phase = torch.rand(n, *[1] * len(shape), generator=random)
        axis = torch.linspace(0, 2, shape[-1])
        image = (0.5 + 0.4 * torch.sin(2 * torch.pi * (axis + phase))).expand(n, *shape).contiguous()
    return Sample(image, torch.full((n,), int(anomalous)), torch.full((n,), int(anomalous)), torch.arange(n))


def toy_loader(samples: Sample) -> ResidentLoader:
    """Shuffled batches of 16."""
    return ResidentLoader(samples, batch_size=16, shuffle=True)


def new(factory: Factory, shape: Sequence[int] = SHAPE) -> OneClassModule:
    """A module whose initial weights are always the same.

    AssertionError if it lacks hyper-parameters that all have, or has attributes that hide methods.
    """
    with seeded():
        module = factory(shape)
    methods = {name for name, _ in getmembers(OneClassModule, isfunction)}
    direct = (module.named_children(), module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    hiding = sorted(methods & {*vars(module), *(name for named in direct for name, _ in named)})
    assert not hiding, f"the attributes {', '.join(hiding)} hide methods: read self.hparams, or take another name"
    missing = [name for name in ("shape", "score", "threshold_quantile") if name not in module.hparams]
    assert not missing, f"__init__ must take {', '.join(missing)} and call self.save_hyperparameters()"
    return module


def fit(
    module: OneClassModule,
    epochs: int,
    folder: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Trainer:
    """Trains on toy samples of the module's shape, silently and on the CPU, and validates on others.

    Args:
        module: Trained in place.
        epochs: The trainer's ``max_epochs``.
        folder: Where ``last.ckpt`` goes; None keeps no checkpoint.
        resume: Whether to resume from ``last.ckpt``.
        stop_after: An epoch after which the training stops, as if it were interrupted.
        callbacks: Of the trainer, as are the other ``options``.
        **options: Of the trainer.
    """

    def stop(trainer: Trainer, _: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 == stop_after

    callbacks = [*callbacks, LambdaCallback(on_train_epoch_end=stop)]
    if folder is not None:
        callbacks.append(ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    train, held_out = (toy_loader(toy_samples(shape=module.hparams["shape"], seed=seed)) for seed in (0, 1))
    checkpoint = f"{folder}/last.ckpt" if resume else None
    with seeded():
        trainer.fit(module, train, held_out, ckpt_path=checkpoint, weights_only=True)
    return trainer


def trained(factory: Factory, epochs: int = 2) -> OneClassModule:
    """A module in eval mode after some epochs of its last phase."""
    module = new(factory)
    fit(module, module.phases[-1] + epochs)
    return module.eval()


def watch_steps(
    module: OneClassModule, batches: int, after: Callable[[str], None], before: Callable[[str], None] = lambda name: None
) -> None:
    """Trains on some batches of each epoch until the last phase has had one, and calls back around every optimiser's step."""

    def watched() -> dict[str, Optimizer]:
        optimizers = named_optimizers()
        for name, optimizer in optimizers.items():
            optimizer.register_step_pre_hook(lambda *_, name=name: before(name))
            optimizer.register_step_post_hook(lambda *_, name=name: after(name))
        return optimizers

    named_optimizers = module.named_optimizers
    module.named_optimizers = watched  # type: ignore[method-assign]
    fit(module, module.phases[-1] + 1, limit_train_batches=batches, limit_val_batches=0)


def optimizer_steps(module: OneClassModule, batches: int = 4) -> list[str]:
    """The names of the optimisers in the order of their steps, see :func:`watch_steps`."""
    steps: list[str] = []
    watch_steps(module, batches, steps.append)
    return steps


def scores_of(module: OneClassModule, x: Tensor) -> dict[str, NDArray[np.float64]]:
    """Every score of ``(B, *shape)`` inputs, ``(B,)``; AssertionError if they are no tensors by name."""
    with torch.no_grad():
        scores = module.scores(x)
    by_name = isinstance(scores, Mapping) and all(isinstance(values, Tensor) for values in scores.values())
    assert by_name, "scores must return tensors by name, such as {'reconstruction': tensor}"
    return {name: values.double().numpy() for name, values in scores.items()}


@contextmanager
def seeded() -> Iterator[None]:
    """A block that begins with seed 0 and runs on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
