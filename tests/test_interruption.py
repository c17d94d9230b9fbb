"""Ctrl-C ends a training between two batches, and a second one at once."""

import os
import signal
import threading
from contextlib import nullcontext

import pytest
from pytorch_lightning import Callback, Trainer

from autoencoder import Autoencoder
from common.testing import toy_loader, toy_samples
from common.training.watcher import Interruption, Watcher


def press():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _pythons_own_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Pressing(Callback):
    """Ctrl-C, ``times`` over, where the second batch begins."""

    def __init__(self, times):
        self.times, self.ended = times, []

    def begin(self, trainer, module, batch, batch_idx, *_):
        for _ in range(self.times if batch_idx == 1 else 0):
            press()

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = on_predict_batch_start = begin

    def end(self, trainer, module, outputs, batch, batch_idx, *_):
        self.ended.append(batch_idx)

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = end


def run(pressing, *callbacks, loop="fit"):
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[pressing, *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Autoencoder((1, 16, 16), network="bounded", widths=[8], latent=8)
    getattr(trainer, loop)(module, toy_loader(toy_samples()))


def train(times, loop="fit"):
    pressing = Pressing(times)
    with pytest.raises(SystemExit) if times else nullcontext():
        run(pressing, Watcher(), loop=loop)
    return pressing.ended


@pytest.mark.parametrize("loop", ["fit", "validate", "test", "predict"])
def test_the_batch_at_which_it_is_pressed_ends(loop):
    assert train(1, loop) == [0, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_does_not_wait():
    assert train(2) == [0]


def test_a_training_gives_the_signal_back():
    assert train(0)[-1] > 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_waits_at_the_end_takes_effect():
    with pytest.raises(KeyboardInterrupt), Interruption():
        press()


def test_what_ends_the_block_otherwise_comes_first():
    interruption = Interruption().__enter__()
    press()
    interruption.__exit__(ValueError, ValueError())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_and_handlers_are_left_alone():
    handlers = []

    def look():
        with Interruption():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    look()
    assert handlers == [signal.default_int_handler, signal.SIG_IGN]
