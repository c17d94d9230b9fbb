"""Ctrl-C that takes effect where nothing is half done."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Interruption:
    """A block in which the first Ctrl-C waits for :meth:`look`; a second one takes effect at once.

    Python raises KeyboardInterrupt wherever the main thread is. Where that is between the two halves of waking another thread,
    as TensorBoard's writer is woken for every number, that thread is never woken, and the program waits for it for ever.
    Outside of the main thread, and where the signal is not Python's own to handle, the block changes nothing.

    Example:
        >>> with Interruption() as interruption:
        ...     for step in range(3):
        ...         interruption.look()
    """

    def __init__(self) -> None:
        self._asked = self._installed = False

    def __enter__(self) -> "Interruption":
        """Begins to wait."""
        own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if own and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        """Gives the signal back to Python; what waits takes effect, unless something else ends the block."""
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False
        if error is None:
            self.look()

    def look(self) -> None:
        """Where an interruption may take effect.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed since the block began.
        """
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._asked = False
            signal.default_int_handler(number, frame)
        self._asked = True


class Interruptible(Callback):
    """Ctrl-C ends a trainer between two batches; see :class:`Interruption`.

    Begun only where a trainer starts its loops, since Lightning puts back the handler that it finds just before.
    """

    def __init__(self) -> None:
        self._interruption = Interruption()

    def _begin(self, *_: Any, **__: Any) -> None:
        self._interruption.__enter__()

    on_train_start = on_validation_start = on_test_start = on_predict_start = _begin

    def _look(self, *_: Any, **__: Any) -> None:
        self._interruption.look()

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _look

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Waits no longer."""
        self._interruption.__exit__()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._interruption.__exit__(type(exception), exception)
