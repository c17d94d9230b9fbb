"""Cells of one process whose training steps are made as one."""

import os
from collections.abc import Callable, Sequence
from threading import Semaphore, Thread
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from common.data import Sample
from common.interruption import Interruption
from common.module import OneClassModule
from common.stack import Generators, Stack

T = TypeVar("T")
Prepare = Callable[[OneClassModule], None]
"""What a cell lets its module go through before it is trained."""


def together(tasks: Sequence[Callable[[Prepare], T]]) -> list[T]:
    """Runs tasks that train a module each, side by side, and makes their training steps as one where they are alike.

    Each task has a thread, one of which goes on at a time: to the next training step of its module, where it waits until all
    others are at theirs or done. Modules that have as many images, batches and epochs before them are then trained by a
    :class:`common.stack.Stack`; any other by itself. Random numbers of PyTorch are each task's own, so that the results are
    those of the tasks one by one, up to rounding.

    Args:
        tasks: Each gives its module to the function that it is called with, before it trains it.

    Returns:
        What each returned.

    Raises:
        BaseException: What one of them raised; the others are ended first.

    Example:
        >>> together([lambda prepare: "first", lambda prepare: "second"])
        ['first', 'second']
    """
    turns = [_Turn(task) for task in tasks]
    stacks: dict[Any, Stack] = {}
    with Interruption() as interruption:
        try:
            while waiting := [turn for turn in turns if turn.goes_on()]:
                interruption.look()
                alike: dict[Any, list[_Turn[T]]] = {}
                for turn in waiting:
                    alike.setdefault(turn.steps, []).append(turn)
                for steps, group in alike.items():
                    if len(group) == 1:
                        if (stack := stacks.pop(steps, None)) is not None:
                            stack.hand_back()
                        group[0].losses = None
                        continue
                    try:
                        stacks[steps] = _step(stacks.get(steps), group)
                    except Exception as error:
                        for turn in group:
                            turn.losses = error
        finally:
            for turn in turns:
                turn.end()
    return [turn.result for turn in turns]


def _step(stack: Stack | None, group: Sequence["_Turn[Any]"]) -> Stack:
    members = [turn.module for turn in group]
    if stack is None or stack.members != members:
        if stack is not None:
            stack.hand_back()
        stack = Stack(members)
    batches, positions = zip(*(turn.batch for turn in group), strict=True)
    losses = stack.training_step(batches, positions[0], [turn.generators for turn in group])
    if members[0].trainer.is_last_batch:
        stack.hand_back()
    for turn, its in zip(group, losses, strict=True):
        turn.losses = its
    return stack


class _Ended(BaseException):
    """Raised in a task that is not to go on."""


class _Turn(Generic[T]):
    """A task in a thread that runs only while :meth:`goes_on` waits for it."""

    module: OneClassModule
    steps: Any
    batch: tuple[Sample, int]
    losses: dict[str, Tensor] | Exception | None
    result: T

    def __init__(self, task: Callable[[Prepare], T]) -> None:
        self.error: BaseException | None = None
        self.generators: Generators = {}
        self._task = task
        self._go, self._back = Semaphore(0), Semaphore(0)
        self._over = self._to_end = False
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def goes_on(self) -> bool:
        """Lets it go on to its next training step; whether there is one."""
        if not self._over:
            self._go.release()
            self._back.acquire()
        if self.error is not None:
            raise self.error
        return not self._over

    def end(self) -> None:
        """Ends it where it is."""
        self._to_end = True
        while not self._over:
            self._go.release()
            self._back.acquire()
        self._thread.join()

    def _prepare(self, module: OneClassModule) -> None:
        self.module, own = module, module.training_step

        def training_step(batch: Sample, batch_idx: int) -> Any:
            self.batch = batch, batch_idx
            self._wait()
            if isinstance(self.losses, Exception):
                raise self.losses
            return own(batch, batch_idx) if self.losses is None else self.losses

        module.training_step = training_step  # type: ignore[method-assign]

    def _wait(self) -> None:
        trainer, device = self.module.trainer, self.module.device
        if not self.generators:
            self.generators = {"cpu": torch.Generator(), device.type: torch.Generator(device)}
            images = len(trainer.train_dataloader.sampler)  # type: ignore[union-attr]
            epochs = trainer.current_epoch, trainer.max_epochs
            self.steps = type(self.module), str(self.module.hparams), images, trainer.num_training_batches, epochs
        for kind, generator in self.generators.items():
            generator.set_state(torch.get_rng_state() if kind == "cpu" else torch.cuda.get_rng_state(device))
        seed = os.environ.get("PL_GLOBAL_SEED")
        self._back.release()
        self._go.acquire()
        if self._to_end:
            raise _Ended
        if seed is not None:
            os.environ["PL_GLOBAL_SEED"] = seed
        for kind, generator in self.generators.items():
            state = generator.get_state()
            torch.set_rng_state(state) if kind == "cpu" else torch.cuda.set_rng_state(state, device)

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._to_end:
                self.result = self._task(self._prepare)
        except _Ended:
            pass
        except BaseException as error:
            self.error = error
        self._over = True
        self._back.release()
