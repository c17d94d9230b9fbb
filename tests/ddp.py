"""One training by one process or several, for :mod:`tests.test_ddp`."""

from pathlib import Path

import torch
from pytorch_lightning import Trainer, seed_everything
from torch import nn
from torch.optim import Adam

from autoencoder import Autoencoder
from common.data import OneClassDataModule
from common.training.lightning import Predictions

GLOBAL_BATCH = 32


class Plain(Autoencoder):
    """Without batch norm, which sees a process's own share of a batch only; with a first pass over the data.

    Encoder and decoder have an optimiser each, and step one after the other, as adversaries do.
    """

    def __init__(self, shape):
        super().__init__(shape, widths=(8, 16), latent=8, lr=5e-3)
        for net in (self.encoder, self.decoder):
            for name, layer in net.named_children():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    setattr(net, name, nn.Identity())
        self.register_buffer("centre", torch.zeros(8))

    def named_optimizers(self):
        return {name: Adam(getattr(self, name).parameters(), 5e-3) for name in ("encoder", "decoder")}

    def training_step(self, batch, batch_idx):
        losses = {}
        for name in ("encoder", "decoder"):
            with self.toggled(name):
                losses[name] = self.reconstruction_loss(self.reconstruct(batch.image), batch.image)
                self.descend(name, losses[name])
        return losses

    def prepare(self, batches):
        batches = list(batches)
        self.order = torch.cat([batch.index for batch in batches])
        self.centre.copy_(torch.cat([self.embed(batch.image) for batch in batches]).mean(0))


def train(devices, folder):
    """Saves, for each process, the state and what a test says."""
    seed_everything(0, workers=True, verbose=False)
    data = OneClassDataModule("digits", normal=2, batch_size=GLOBAL_BATCH // devices, eval_batch_size=50)
    module = Plain(data.shape)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
        max_epochs=8,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Predictions()],
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data, return_predictions=False)
    torch.save(
        {
            "state": module.state_dict(),
            "order": module.order,
            "calibration": module.calibration,
            "index": torch.from_numpy(module.scored.index),
            "scores": torch.from_numpy(module.scored.scores["reconstruction"]),
            "metrics": module.test_metrics()["reconstruction"],
        },
        Path(folder, f"{devices}-{trainer.global_rank}.pt"),
    )
