"""Modules that are trained as one end where each would by itself."""

import threading
from functools import partial

import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

import common.experiment.together as together_module
from alocc import ALOCC
from autoencoder import Autoencoder
from common.data.datamodule import ResidentLoader
from common.errors import InputError
from common.experiment import run_experiment
from common.experiment.together import together
from common.testing import toy_samples
from experiments.alocc import EXPERIMENT
from ocgan import OCGAN
from ocnn import OCCNN

SHAPE = (1, 16, 16)
NETS = {"encoder_widths": (8, 16), "decoder_widths": (8,), "discriminator_widths": (8, 16)}
CRITICS = {"width": 8, "latent": 4, "visual_width": 4, "classifier_width": 4, "mining_steps": 2}
MODULES = {
    "bounded": partial(Autoencoder, SHAPE, network="bounded", widths=[8], latent=8, noise_std=0.2, schedule="cosine"),
    "lenet": partial(Autoencoder, SHAPE, network="lenet", widths=[8, 4], latent=32, weight_decay=1e-3),
    "strided": partial(Autoencoder, SHAPE, network="strided", widths=[8, 4], latent=8, schedule="inverse_time"),
    "alocc": partial(ALOCC, SHAPE, **NETS, optimizer="rmsprop", r_steps=2),
    "pseudo": partial(
        ALOCC, SHAPE, **NETS, latent=8, discriminator_norm="none", sigma=(0, 0.5), alpha=0.5, beta=0.9, averaging=0.99
    ),
    "ocgan": partial(OCGAN, SHAPE, **CRITICS, random_share=0.25, noise_std=0.4),
    "inferred": partial(OCGAN, SHAPE, **CRITICS, inference_codes=True, schedule="cosine"),
    "ocnn": partial(OCCNN, SHAPE, backbone="none", classifier_widths=[8], sigma=0.5),
    "vectors": partial(ALOCC, (30,), encoder_widths=(16, 8), decoder_widths=(16,), discriminator_widths=(16,), alpha=0.5),
}


def train(make, seed, folder, prepare=lambda module: None, images=40, epochs=4, resumed=False):
    """In double precision, where rounding cannot grow to something that is seen."""
    torch.manual_seed(seed)
    module = make().double()
    prepare(module)
    loaders = []
    for of in (seed, seed + 100):
        sample = toy_samples(images, module.hparams["shape"], seed=of)
        loaders.append(ResidentLoader(sample._replace(image=sample.image.double()), batch_size=16, shuffle=True))
    folder = folder / f"{seed}"
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, *loaders, ckpt_path=str(folder / "last.ckpt") if resumed else None, weights_only=True)
    return torch.load(folder / "last.ckpt", weights_only=True)


def assert_same(one, other):
    for first, second in ((one["state_dict"], other["state_dict"]), *zip(*map(states, (one, other)), strict=True)):
        assert first.keys() == second.keys()
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert one["global_step"] == other["global_step"] > 0
    assert one["lr_schedulers"] == other["lr_schedulers"]


def states(checkpoint):
    return [state for optimizer in checkpoint["optimizer_states"] for state in optimizer["state"].values()]


@pytest.fixture
def stacks(monkeypatch):
    """How many modules each training step was of."""
    sizes = []

    class Counted(together_module.Stack):
        def training_step(self, batches, batch_idx, generators):
            sizes.append(len(batches))
            return super().training_step(batches, batch_idx, generators)

    monkeypatch.setattr(together_module, "Stack", Counted)
    return sizes


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_stack_trains_each_as_by_itself(make, tmp_path, stacks):
    alone = [train(make, seed, tmp_path / "alone") for seed in (1, 2, 3)]
    stacked = together([partial(train, make, seed, tmp_path / "stacked") for seed in (1, 2, 3)])
    assert stacks == [3] * 12
    for one, other in zip(alone, stacked, strict=True):
        assert_same(one, other)


class InnerDraws(Autoencoder):
    """Draws noise in a function of which it takes the gradient, as adversarial training may."""

    def training_step(self, batch, batch_idx):
        def error(x):
            return (self.reconstruct(x + 0.1 * torch.randn_like(x)) - x).square().mean()

        with torch.no_grad():
            harder = batch.image + torch.func.grad(error)(batch.image).sign() / 10
        return super().training_step(batch._replace(image=harder), batch_idx)


def test_draws_inside_of_an_inner_gradient_are_each_modules_own(tmp_path):
    make = partial(InnerDraws, (30,), widths=[16], latent=4, noise_std=0.2)
    alone = [train(make, seed, tmp_path / "alone") for seed in (1, 2)]
    stacked = together([partial(train, make, seed, tmp_path / "stacked") for seed in (1, 2)])
    for one, other in zip(alone, stacked, strict=True):
        assert_same(one, other)


def test_only_what_is_alike_is_stacked(tmp_path, stacks):
    images = {1: 40, 2: 50, 3: 40, 4: 64}
    alone = [train(MODULES["ocgan"], seed, tmp_path / "alone", images=n) for seed, n in images.items()]
    tasks = [partial(train, MODULES["ocgan"], seed, tmp_path / "stacked", images=n) for seed, n in images.items()]
    stacked = together(tasks)
    assert stacks == [2] * 12
    for one, other in zip(alone, stacked, strict=True):
        assert_same(one, other)


def test_a_stack_goes_on_from_checkpoints(tmp_path, stacks):
    make = MODULES["bounded"].func
    make = partial(make, SHAPE, network="bounded", widths=[8], latent=8, noise_std=0.2)
    whole = together([partial(train, make, seed, tmp_path / "whole") for seed in (1, 2)])
    for seed in (1, 2):
        train(make, seed, tmp_path / "begun", epochs=2)
    resumed = together([partial(train, make, seed, tmp_path / "begun", resumed=True) for seed in (1, 2)])
    assert stacks == [2] * 12 + [2] * 6
    for one, other in zip(whole, resumed, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(("seeds", "sizes"), [((1, 3), [3] * 5 + [2] * 7), ((3,), [2] * 5)])
def test_one_that_fails_leaves_the_others_as_they_are(tmp_path, stacks, seeds, sizes):
    make = MODULES["bounded"]

    def failing(prepare):
        def prepared(module):
            prepare(module)
            module.on_train_batch_start = fail

        def fail(batch, batch_idx):
            batches.append(batch_idx)
            if len(batches) == 6:
                raise ZeroDivisionError

        batches = []
        try:
            train(make, 2, tmp_path / "stacked", prepared)
        except ZeroDivisionError:
            return "failed"

    alone = [train(make, seed, tmp_path / "alone") for seed in seeds]
    first, *others = together([failing, *(partial(train, make, seed, tmp_path / "stacked") for seed in seeds)])
    assert first == "failed"
    assert stacks == sizes
    for one, other in zip(alone, others, strict=True):
        assert_same(one, other)


def test_an_error_ends_all(tmp_path):
    def mistaken(prepare):
        raise InputError("no such thing")

    before = threading.active_count()
    with pytest.raises(InputError, match="no such thing"):
        together([partial(train, MODULES["bounded"], 1, tmp_path), mistaken])
    assert threading.active_count() == before


def test_an_error_in_the_common_step_is_everyones(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(together_module.Stack, "training_step", fail)
    ends = []

    def task(seed, prepare):
        try:
            train(MODULES["bounded"], seed, tmp_path, prepare)
        except RuntimeError as error:
            ends.append(str(error))

    together([partial(task, seed) for seed in (1, 2)])
    assert ends == ["out of memory"] * 2


def test_dropout_is_refused(tmp_path):
    def make():
        module = MODULES["bounded"]()
        module.encoder.append(nn.Dropout(0.5))
        return module

    with pytest.raises(InputError, match="leave out --stack"):
        together([partial(train, make, seed, tmp_path) for seed in (1, 2)])


def test_the_flag_gives_the_tables_of_separate_cells(tmp_path, capsys):
    flags = ["--datasets", "digits", "--presets", "autoencoder-smoke", "ocgan-smoke", "classical-lof", "--normal", "1", "3"]
    flags += ["--seeds", "0", "1", "--device", "cpu", "--jobs", "1"]
    tables = []
    for name, more in (("alone", []), ("stacked", ["--stack", "4"])):
        run_experiment(EXPERIMENT, [*flags, *more, "--runs", str(tmp_path / name)])
        tables.append(pd.read_csv(tmp_path / name / "alocc.csv").drop(columns="command", errors="ignore"))
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-2)
    assert len(list(tmp_path.glob("stacked/**/metrics.json"))) == 10
    capsys.readouterr()
