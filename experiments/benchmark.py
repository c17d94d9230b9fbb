"""Throughput of every method through Lightning beside a bare PyTorch loop of the same arithmetic: one JSON line each."""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchvision
from pytorch_lightning import seed_everything

from common.backbones import split
from common.cli import OneClassCLI, assemble, one_line_errors, settle
from common.data import OneClassDataModule
from common.data.features import BATCH, extract
from common.experiment.cell import Cell, Settings
from common.testing import optimizers_of

PRESETS = (
    "autoencoder-paper", "autoencoder-dcae", "autoencoder-denoising", "autoencoder-small",
    "alocc-paper", "alocc-official", "alocc-stable", "alocc-small",
    "ocgan-paper", "ocgan-official", "ocgan-tuned", "ocgan-small",
    "ocnn-smoke",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measures in alternation, so that a machine whose speed drifts slows both; medians and the median of the ratios.

    ``train`` counts the images of the training batches from the epoch's start to its last step; ``fit`` is the same with
    all that Lightning does besides (validation, checkpoints, logs), which the bare loop has not; ``score`` is the test.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), help="METHOD-PRESET")
    parser.add_argument(
        "--backbone", help="of torchvision: measure the extraction of its features at 224 pixels, and no preset"
    )
    parser.add_argument("--images", type=int, default=512, help="of each round of an extraction")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--normal", default="8")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--batch-size", type=int, help="instead of the presets'")
    parser.add_argument("--epochs", type=int, default=2, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        settle()
        torch.set_num_threads(arguments.threads)
        if arguments.backbone:
            print(json.dumps(measure_extraction(arguments)), flush=True)
            return
        for name in arguments.presets:
            for line in measure(name, arguments):
                print(json.dumps(line), flush=True)


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of one preset: ``train``, ``fit`` and ``score``."""
    rounds = [(through_lightning(name, arguments), bare(name, arguments)) for _ in range(arguments.rounds + 1)][1:]
    about = {"method": name, "dataset": arguments.dataset, "threads": arguments.threads, "device": arguments.device}
    lines = []
    for what in ("train", "fit", "score"):
        ours = [lightning[what] for lightning, _ in rounds]
        plain = [loop["train" if what == "fit" else what] for _, loop in rounds]
        ratios = [a / b for a, b in zip(ours, plain, strict=True)]
        lines.append(about | {
            "what": what,
            "batch_size": rounds[0][0]["batch_size"] if what != "score" else 1000,
            "images_per_s": round(statistics.median(ours)),
            "bare_images_per_s": round(statistics.median(plain)),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "cores": os.cpu_count(),
        })  # fmt: skip
    return lines


def measure_extraction(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images of files to features, beside torchvision's net on images that lie ready as floats."""
    data = OneClassDataModule(arguments.dataset, root=arguments.root, image_size=224, channels=3)
    frozen, _ = split(arguments.backbone)
    weights = torchvision.models.get_model_weights(arguments.backbone).DEFAULT
    net = torchvision.models.get_model(arguments.backbone, weights=weights).eval().to(memory_format=torch.channels_last)
    frozen.to(memory_format=torch.channels_last)
    indices = torch.linspace(0, data.data.images.shape[0] - 1, arguments.images).long()
    batch = data.images(indices[:BATCH].numpy()).contiguous(memory_format=torch.channels_last)
    ours, plain = [], []
    for _ in range(arguments.rounds + 1):
        start = time.perf_counter()
        n = sum(len(part) for part in extract(frozen, data.data.images, data.preprocessing, indices=indices))
        ours.append(n / (time.perf_counter() - start))
        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(n // BATCH):
                net(batch)
        plain.append(n // BATCH * BATCH / (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(ours[1:], plain[1:], strict=True)]
    return {
        "what": "extraction",
        "backbone": arguments.backbone,
        "dataset": arguments.dataset,
        "threads": arguments.threads,
        "images_per_s": round(statistics.median(ours[1:]), 1),
        "bare_images_per_s": round(statistics.median(plain[1:]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "cores": os.cpu_count(),
    }


def through_lightning(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Images per second of a run as a cell has it."""
    with tempfile.TemporaryDirectory() as folder:
        cli = _parts(name, arguments, folder)
        start = time.perf_counter()
        cli.trainer.fit(cli.model, cli.datamodule)
        fit_s = time.perf_counter() - start
        cli.trainer.callbacks.clear()  # type: ignore[attr-defined]
        start = time.perf_counter()
        cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        score_s = time.perf_counter() - start
    return {
        "train": cli.throughput.images_per_s,
        "fit": cli.throughput.images / fit_s,
        "score": len(cli.datamodule.splits.test) / score_s,
        "batch_size": cli.datamodule.batch_size,
    }


def bare(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Images per second of ``for image in batches`` around the same training step, its optimisers plain PyTorch's."""
    with tempfile.TemporaryDirectory() as folder:
        cli = _parts(name, arguments, folder)
        module: Any = cli.model
        data = cli.datamodule
        data.setup()
        batches, n = data.train_dataloader(), 0
        module.trainer = SimpleNamespace(
            estimated_stepping_batches=arguments.epochs * len(batches), current_epoch=0, max_epochs=arguments.epochs
        )
        optimizers = module.trainer.optimizers = optimizers_of(module.configure_optimizers())
        module.optimizers = lambda: optimizers if len(optimizers) > 1 else optimizers[0]
        module.descend = _descend
        module.to(arguments.device, memory_format=torch.channels_last)
        module.train()
        start = time.perf_counter()
        for epoch in range(arguments.epochs):
            batches.sampler.set_epoch(epoch)  # type: ignore[union-attr]
            module.trainer.current_epoch = epoch
            for position, batch in enumerate(batches):
                module.training_step(batch, position)
                n += len(batch.image)
        _synchronize(arguments.device)
        train_s = time.perf_counter() - start
        module.eval()
        start = time.perf_counter()
        with torch.inference_mode():
            scores = [module.scores(batch.image) for batch in data.test_dataloader()]
        _synchronize(arguments.device)
        score_s = time.perf_counter() - start
    return {"train": n / train_s, "score": sum(len(next(iter(s.values()))) for s in scores) / score_s}


def _descend(optimizer: torch.optim.Optimizer | list[torch.optim.Optimizer], loss: torch.Tensor) -> None:
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    for one in optimizers:
        one.zero_grad()
    loss.backward()
    for one in optimizers:
        one.step()


def _parts(name: str, arguments: argparse.Namespace, folder: str) -> OneClassCLI:
    method, _, preset = name.rpartition("-")
    cell = Cell(method, preset, arguments.dataset, "standard", arguments.normal, 0)
    config = cell.config(Settings(max_epochs=arguments.epochs))
    config["data"] |= {"root": str(arguments.root) if arguments.root else None}
    if arguments.batch_size:
        config["data"]["batch_size"] = arguments.batch_size
    logger = {"save_dir": folder, "name": "", "version": "", "default_hp_metric": False}
    config["trainer"] |= {
        "accelerator": {"cuda": "gpu"}.get(arguments.device, "cpu"),
        "devices": 1,
        "default_root_dir": folder,
        "logger": {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": logger},
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    seed_everything(0, verbose=False)
    return assemble(config)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
