"""The file that ``oneclass predict`` writes."""

from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from common.data import OneClassDataModule
from common.data.images import places
from common.files import write_whole
from common.module import OneClassModule
from common.training.checkpoints import run_folder


class Predictions(Callback):
    """Writes ``predictions.csv`` into the run's folder: data-set index, every score, and whether the threshold is reached.

    Where samples are files a column ``path`` names them.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collects a batch."""
        self._batches.append(outputs)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Joins the parts of all processes and writes them."""
        assert isinstance(module, OneClassModule)
        columns = module.gathered({name: torch.cat([part[name] for part in self._batches]) for name in self._batches[0]})
        self._batches.clear()
        path = run_folder(trainer) / "predictions.csv"
        if trainer.is_global_zero:
            table = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
            data = trainer.datamodule  # type: ignore[attr-defined]
            if isinstance(data, OneClassDataModule):
                table = table.assign(**places(data.data.images, table["index"].to_numpy()))
            write_whole(path, table.to_csv(index=False))
            print(f"written: {path}")
