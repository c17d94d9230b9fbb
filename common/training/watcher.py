"""One callback for everything per batch: finite losses, throughput and Ctrl-C."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from common.data import Sample
from common.errors import Terminated

CHECKED_BATCHES = 50
"""How many batches may pass between two checks of the losses."""


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite: training is over."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Context in which Ctrl-C ends a trainer with KeyboardInterrupt instead of Lightning's exit status 1.

    SIGTERM ends it with :class:`common.errors.Terminated`; Lightning's exit status would be 0, as after a whole training.
    """
    try:
        yield
    except SIGTERMException:
        raise Terminated from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from None


class Interruption:
    """Context in which the first Ctrl-C waits for :meth:`look`; a second one takes effect at once.

    Python raises KeyboardInterrupt wherever the main thread is. TensorBoard's writer wakes another thread for every number.
    An interrupt between the two halves of such a wake-up leaves that thread asleep, and the program waits for it for ever.
    Outside of the main thread, and where the signal is not Python's own to handle, the block changes nothing.
    """

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> "Interruption":
        """Begins to wait."""
        own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if own and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        """Gives the signal back to Python; a waiting Ctrl-C takes effect, unless something else ends the block."""
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if error is None:
            self.look()

    def look(self) -> None:
        """Lets a waiting Ctrl-C take effect here, as KeyboardInterrupt."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._asked = False
            signal.default_int_handler(number, frame)
        self._asked = True


class Watcher(Callback):
    """Stops a training whose loss is not finite, measures its speed, and ends it between two batches on Ctrl-C.

    Every callback costs time in every batch, so one does all three. Losses are checked every :data:`CHECKED_BATCHES` and at
    the epoch's end, so that a GPU need not wait after each batch. The speed leaves validation and checkpoints out, covers all
    sittings of a resumed run, and is logged as ``train/images_per_s``. Ctrl-C works as :class:`Interruption` says.

    Attributes:
        images: Training images so far, of all processes.
        seconds: Training time so far.

    Raises:
        NonFiniteLossError: Names epoch, batch and loss; before the epoch's checkpoint is written.
    """

    def __init__(self) -> None:
        self.images, self.seconds, self._start = 0, 0.0, 0.0
        self._losses: list[tuple[int, Mapping[str, Tensor]]] = []
        self._interruption = Interruption()

    @property
    def images_per_s(self) -> float:
        """Training images per second, the mean over the run."""
        return self.images / self.seconds if self.seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Starts the clock."""
        self._losses.clear()
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Sample, batch_idx: int
    ) -> None:
        """Counts the images, keeps the losses and looks for Ctrl-C; after the last batch it stops the clock."""
        self.images += len(batch.image) * trainer.world_size
        self._losses.append((batch_idx, {name: loss.detach() for name, loss in outputs.items()}))
        if trainer.is_last_batch:
            self._stop_clock(module)
        if trainer.is_last_batch or len(self._losses) >= CHECKED_BATCHES:
            self._check(trainer.current_epoch)
        self._interruption.look()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs ``train/images_per_s``, after the last losses of an epoch that ``max_steps`` or ``max_time`` has cut short."""
        # An epoch that is cut short has no last batch.
        if not trainer.is_last_batch:
            self._stop_clock(module)
            self._check(trainer.current_epoch)
        module.log("train/images_per_s", self.images_per_s)

    def state_dict(self) -> dict[str, Any]:
        """The counts travel with the checkpoint."""
        return {"images": self.images, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run goes on counting."""
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]

    def _look(self, *_: Any, **__: Any) -> None:
        self._interruption.look()

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _look

    def _begin(self, *_: Any, **__: Any) -> None:
        # Not in setup: just before its loops Lightning puts back the handler that it found there.
        self._interruption.__enter__()

    on_train_start = on_validation_start = on_test_start = on_predict_start = _begin

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Gives Ctrl-C back to Python."""
        self._interruption.__exit__()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Gives Ctrl-C back to Python; the exception comes first."""
        self._interruption.__exit__(type(exception), exception)

    def _stop_clock(self, module: LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._start

    def _check(self, epoch: int) -> None:
        losses, self._losses = self._losses, []
        if not losses:
            return
        flat = [(batch_idx, name, loss) for batch_idx, by_name in losses for name, loss in by_name.items()]
        bad = (~torch.isfinite(torch.stack([loss for *_, loss in flat]))).nonzero().tolist()
        if bad:
            batch_idx, name, loss = flat[bad[0][0]]
            raise NonFiniteLossError(f"{name} is {loss.item()} in epoch {epoch}, batch {batch_idx}: lower the learning rate")
