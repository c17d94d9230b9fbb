"""Measures the throughput of every method in Lightning and in a bare PyTorch loop; prints one JSON line for each."""

import argparse
import json
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchvision
from pytorch_lightning import seed_everything

from common.backbones import split
from common.command_line import Parser, one_line_errors
from common.data import OneClassDataModule
from common.data.features import BATCH, extract
from common.errors import InputError
from common.experiment.cell import Cell, Settings
from common.training.lightning import OneClassCLI, assemble
from common.training.process import configure_process
from common.training.speed import fuse

PRESETS = (
    "autoencoder-paper", "autoencoder-dcae", "autoencoder-denoising", "autoencoder-small",
    "alocc-paper", "alocc-official", "alocc-stable", "alocc-small",
    "ocgan-paper", "ocgan-official", "ocgan-tuned", "ocgan-small",
    "ocnn-small",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Prints medians over rounds that alternate between both loops, because the speed of a machine may drift.

    ``train`` is images per second from the start of an epoch to its last step. ``fit`` includes what only Lightning does
    (validation, checkpoints, logs). ``score`` is the test. ``cells_per_hour`` counts whole cells with all epochs of the
    preset, including start and test, one after the other. Memory is the peak of a process that does nothing else.
    """
    parser = Parser(prog="python -m experiments.benchmark", description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), help="METHOD-PRESET, several")
    parser.add_argument("--backbone", help="a net of torchvision: measure only the extraction of its features at 224 pixels")
    parser.add_argument("--images", type=int, default=512, help="images in each round, for --backbone (default: 512)")
    parser.add_argument("--dataset", default="mnist", help="a data set's name (default: mnist)")
    parser.add_argument("--normal", default="8", help="the normal class (default: 8)")
    parser.add_argument("--root", type=Path, help="where data sets lie (default: $ONECLASS_DATA or the user's cache)")
    parser.add_argument("--batch-size", type=int, help="replaces the batch size of the presets")
    parser.add_argument("--epochs", type=int, default=2, help="epochs in each round (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up (default: 5)")
    parser.add_argument("--no-channels-last", dest="channels_last", action="store_false", help="use contiguous memory")
    parser.add_argument("--no-fused", dest="fused", action="store_false", help="use optimisers that are not fused")
    parser.add_argument("--precision", default="32-true", help="Lightning's precision, such as bf16-mixed")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        if arguments.backbone:
            _print_lines(arguments.threads, measure_extraction, arguments)
        else:
            if classical := [name for name in arguments.presets if name.startswith("classical-")]:
                raise InputError(f"{classical[0]} is a classical detector: only nets are measured")
            for name in arguments.presets:
                _print_lines(arguments.threads, measure, name, arguments)


def _print_lines(threads: int, measurement: Callable[..., list[dict[str, Any]]], *given: Any) -> None:
    """Prints the lines of a measurement, which has a process of its own, as its memory is measured too."""
    with ProcessPoolExecutor(1, get_context("spawn"), _configure, (threads,)) as fresh:
        for line in fresh.submit(measurement, *given).result():
            print(json.dumps(line), flush=True)


def _configure(threads: int) -> None:
    configure_process()
    torch.set_num_threads(threads)


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one preset; returns the lines ``train``, ``fit`` and ``score``."""
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    for _ in range(arguments.rounds + 1):
        ours = through_lightning(name, arguments)
        rounds.append((ours, bare(name, arguments)))
    del rounds[0]
    modes = {mode: getattr(arguments, mode) for mode in ("channels_last", "fused", "precision", "threads", "device")}
    setting = {"method": name, "dataset": arguments.dataset, **modes}
    lines = []
    for what in ("train", "fit", "score"):
        rates = [lightning[what] for lightning, _ in rounds]
        plain = [loop["score" if what == "score" else "train"] for _, loop in rounds]
        batch_size = rounds[0][0]["batch_size"] if what != "score" else 1000
        lines.append(setting | {"what": what, "batch_size": batch_size} | _compared(rates, plain))
        if what == "fit":
            seconds = statistics.median(ours["begin_s"] + ours["fit_s"] + ours["score_s"] for ours, _ in rounds)
            lines[-1] |= {"cells_per_hour": round(3600 / seconds, 1)}
    return [line | _memory(arguments.device) for line in lines]


def measure_extraction(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the extraction of features from files, and torchvision's net alone on images in memory."""
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
    setting = {name: getattr(arguments, name) for name in ("backbone", "dataset", "threads")}
    return [{"what": "extraction"} | setting | _compared(ours[1:], plain[1:]) | _memory("cpu")]


def _compared(ours: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    return {
        "images_per_s": round(statistics.median(ours), 1),
        "bare_images_per_s": round(statistics.median(plain), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def through_lightning(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measures a run in Lightning: images per second, and the seconds of the parts of a cell."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cli = _parts(name, arguments, folder)
        cli.datamodule.setup()
        begin_s = time.perf_counter() - start
        start = time.perf_counter()
        cli.trainer.fit(cli.model, cli.datamodule)
        fit_s = time.perf_counter() - start
        cli.trainer.callbacks.clear()  # type: ignore[attr-defined]
        start = time.perf_counter()
        cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        score_s = time.perf_counter() - start
    return {
        "train": cli.watcher.images_per_s,
        "fit": cli.watcher.images / fit_s,
        "score": len(cli.datamodule.splits.test) / score_s,
        "batch_size": cli.datamodule.batch_size,
        "begin_s": begin_s,
        "fit_s": fit_s * _epochs(name, arguments, cli) / arguments.epochs,
        "score_s": score_s,
    }


def _epochs(name: str, arguments: argparse.Namespace, cli: OneClassCLI) -> int:
    """The number of epochs of a whole cell."""
    config = _cell(name, arguments).config(Settings())
    epochs: int = config["trainer"].get("max_epochs", cli.trainer.max_epochs)
    iterations = cli.model.hparams.get("iterations")
    return min(epochs, math.ceil(iterations / cli.trainer.num_training_batches)) if iterations else epochs


def bare(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measures images per second of a plain loop over batches, with the same training step and PyTorch's optimisers.

    The loop is always channels-last, fused and in single precision, so that ratios compare other modes with it.
    """
    with tempfile.TemporaryDirectory() as folder:
        cli = _parts(name, arguments, folder)
        module: Any = cli.model
        data = cli.datamodule
        data.extractor = module.frozen()
        data.trainer = cli.trainer  # whose device is that of the batches
        data.setup()
        batches, n = data.train_dataloader(), 0
        module.trainer = SimpleNamespace(current_epoch=0, max_epochs=arguments.epochs)
        optimizers = module.named_optimizers()
        module.optimizer = optimizers.__getitem__
        module.trainer.optimizers = list(optimizers.values())
        module.manual_backward = torch.Tensor.backward
        module.to(arguments.device, memory_format=torch.channels_last)
        fuse(optimizers.values())
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


def _cell(name: str, arguments: argparse.Namespace) -> Cell:
    return Cell(name, arguments.dataset, "standard", arguments.normal, 0)


def _parts(name: str, arguments: argparse.Namespace, folder: str) -> OneClassCLI:
    config = _cell(name, arguments).config(Settings(root=arguments.root, max_epochs=arguments.epochs))
    if arguments.batch_size:
        config["data"]["batch_size"] = arguments.batch_size
    logger = {"save_dir": folder, "name": "", "version": "", "default_hp_metric": False}
    config["trainer"] |= {
        "accelerator": arguments.device,
        "devices": 1,
        "precision": arguments.precision,
        "default_root_dir": folder,
        "logger": {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": logger},
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    config["speed"] = {"channels_last": arguments.channels_last, "fused": arguments.fused}
    seed_everything(0, verbose=False)
    return assemble(config)


def _memory(device: str) -> dict[str, int | None]:
    peak = {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "cores": os.cpu_count()}
    return peak | ({"peak_gpu_mib": torch.cuda.max_memory_allocated() // 2**20} if device == "cuda" else {})


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
