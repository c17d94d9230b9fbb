"""What makes a training faster leaves its numbers as they are, but for rounding."""

import json
from argparse import Namespace
from functools import partial

import pytest
import torch
from forks import CONTEXT
from pytorch_lightning import Trainer

from autoencoder import Autoencoder
from common.experiment.cell import Settings
from common.testing import toy_loader, toy_samples
from common.training.speed import Speed, fuse
from experiments import benchmark
from ocnn import OCCNN

pytestmark = pytest.mark.usefixtures("blank_figures")

OFF = Speed(channels_last=False, fused=False)


def train(speed=None):
    torch.manual_seed(0)
    module = Autoencoder((1, 16, 16), network="bounded", widths=[8], latent=8, schedule="cosine")
    module.double()
    module.speed = speed or module.speed
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sample = toy_samples()
    trainer.fit(module, toy_loader(sample._replace(image=sample.image.double())))
    return module, trainer


def test_every_training_has_it():
    module, trainer = train()
    assert [type(callback) for callback in trainer.callbacks if isinstance(callback, Speed)] == [Speed]
    assert trainer.optimizers[0].param_groups[0]["fused"]
    assert module.encoder[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_it_can_be_turned_off():
    module, trainer = train(OFF)
    assert not trainer.optimizers[0].param_groups[0]["fused"]
    assert module.encoder[3].weight.is_contiguous()


def test_it_changes_rounding_alone():
    plain, fast = train(OFF)[0].state_dict(), train(Speed())[0].state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, equal_nan=True, rtol=1e-5, atol=1e-7)


def test_only_what_can_be_fused_is():
    parameter = torch.nn.Parameter(torch.ones(2))
    rmsprop, adam = torch.optim.RMSprop([parameter]), torch.optim.Adam([parameter])
    fuse([rmsprop, adam])
    assert "fused" not in rmsprop.param_groups[0]
    assert adam.param_groups[0]["fused"]
    parameter.sum().backward()
    adam.step()
    assert (parameter < 1).all()


@pytest.mark.parametrize("flags", [[], ["--no-fused", "--no-channels-last", "--precision", "bf16-mixed"]])
def test_the_benchmark_prints_json_lines(flags, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "get_context", lambda method: CONTEXT)
    benchmark.main(["--presets", "autoencoder-smoke", "--dataset", "digits", "--rounds", "1", *flags])
    lines = {line["what"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(lines) == ["train", "fit", "score"]
    assert all(line["images_per_s"] > 0 and line["ratio"] > 0 and line["peak_mib"] > 100 for line in lines.values())
    assert all(line["fused"] != bool(flags) for line in lines.values())
    assert lines["fit"]["cells_per_hour"] > 0


def test_the_bare_loop_reads_the_features_that_lightning_reads(monkeypatch, tmp_path):
    seen, step = set(), OCCNN.training_step
    monkeypatch.setattr(OCCNN, "training_step", lambda self, batch, i: seen.add(batch.image.shape[1:]) or step(self, batch, i))
    monkeypatch.setattr(benchmark, "Settings", partial(Settings, image_size=40))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = Namespace(
        dataset="digits", normal="8", root=tmp_path, batch_size=None, epochs=1, channels_last=True, fused=True,
        precision="32-true", device="cpu",
    )  # fmt: skip
    for loop in (benchmark.through_lightning, benchmark.bare):
        loop("ocnn-tuned,weights=null", arguments)
        assert seen == {(1512,)}
        seen.clear()
