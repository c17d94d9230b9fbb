"""Prints the gradient norm of each term of OCGAN's last step, and the accuracy of the critics, for each checkpoint."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor, nn

from common.command_line import Parser, one_line_errors
from common.data import OneClassDataModule
from common.deploy.load import load_checkpoint, load_detector
from common.errors import InputError
from common.experiment.terminal import plain
from common.files import write_whole
from common.losses import add_noise
from ocgan import OCGAN

PULLS = {
    "En mse": ("encoder", "loss_reconstruction"),
    "En D_l": ("encoder", "loss_latent"),
    "De mse": ("decoder", "loss_reconstruction"),
    "De D_v": ("decoder", "loss_visual"),
}
"""The net and the loss term of each gradient. D_v has no gradient in the encoder, and D_l none in the decoder."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each checkpoint, ordered by epoch, and writes the rows as CSV if ``--out`` is given."""
    parser = Parser(prog="python -m experiments.ocgan_balance", description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="checkpoints of OCGAN with all its critics")
    parser.add_argument("--dataset", default="mnist", help="a data set's name (default: mnist)")
    parser.add_argument("--normal", default="8", help="the normal class (default: 8)")
    parser.add_argument("--root", type=Path, help="where data sets lie (default: $ONECLASS_DATA or the user's cache)")
    parser.add_argument("--batch-size", type=int, default=128, help="how many of the first training images (default: 128)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also write the rows to this file")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        rows = pd.DataFrame([measure(path, arguments) for path in arguments.checkpoints]).sort_values("epoch")
        text = rows.map("{:.3g}".format).assign(epoch=rows["epoch"].astype(int).astype(str))
        Console().print(plain(text))
        if arguments.out is not None:
            write_whole(arguments.out, rows.to_csv(index=False, float_format="%.4g"))


def measure(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measures one checkpoint: its epoch, and the values of :func:`balance`.

    Raises:
        InputError: It is not a checkpoint of OCGAN with all three critics.
    """
    detector = load_detector(path)
    module, preprocessing = detector.module, detector.preprocessing
    if not isinstance(module, OCGAN) or len(module.critics) < 3:
        raise InputError(f"{path} is not a checkpoint of OCGAN with all three critics: use a run of ocgan-paper or ocgan-tuned")
    data = OneClassDataModule(arguments.dataset, arguments.normal, arguments.root and str(arguments.root))
    stored = data.data.images[torch.from_numpy(data.splits.train[: arguments.batch_size])]
    torch.manual_seed(0)
    epoch = load_checkpoint(path)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return {"epoch": epoch, **balance(module.train(), preprocessing(stored))}


def balance(module: OCGAN, image: Tensor) -> dict[str, float]:
    """Computes the gradient norms of the weighted terms in encoder and decoder, and the accuracy of each critic.

    Args:
        module: OCGAN in training mode.
        image: ``(B, *shape)`` training images.

    Example:
        >>> module = OCGAN(shape=(1, 8, 8), width=8, latent=4, visual_width=4, classifier_width=4)
        >>> list(balance(module, torch.rand(4, 1, 8, 8)))
        ['En mse', 'En D_l', 'De mse', 'De D_v', 'acc D_l', 'acc D_v', 'acc C']
    """
    latent = module.encoder(add_noise(image, module.hparams.noise_std))
    reconstruction = module.decoder(latent)
    random = 2 * torch.rand_like(latent) - 1
    fake = module.decoder(random)
    terms = module.generator_losses(image, latent, reconstruction, fake)
    row, critics = dict[str, float](), module.critics
    for column, (net, name) in PULLS.items():
        row[column] = gradient_norm(module.generator_weights[name] * terms[name], getattr(module, net))
    seen = {
        "acc D_l": ("latent_discriminator", random, latent),
        "acc D_v": ("visual_discriminator", image, fake),
        "acc C": ("classifier", reconstruction, fake),
    }
    for short, (name, real, false) in seen.items():
        right = [(critics[name](real) > 0).float().mean(), (critics[name](false) < 0).float().mean()]
        row[short] = float(torch.stack(right).mean())
    return row


def gradient_norm(loss: Tensor, net: nn.Module) -> float:
    """The Euclidean norm of a loss's gradient with respect to all parameters of a net; 0 if it does not depend on them."""
    gradients = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
    squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


if __name__ == "__main__":
    main()
