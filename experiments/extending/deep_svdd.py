"""Deep SVDD in one file outside of the packages: a new paper needs only this and a YAML file."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from autoencoder.networks import build
from common.data import Sample
from common.losses import squared_error
from common.module import OneClassModule
from common.networks import halvings, is_flat


class DeepSVDD(OneClassModule):
    """A net that maps normal images close to a centre ``c``; the score is the squared distance from the centre.

    Ruff et al., "Deep One-Class Classification", ICML 2018, the one-class objective.

    Args:
        shape: ``(C, H, W)`` of an image, or ``(F,)`` of a flat vector, for which the net is dense.
        widths: Channels of the convolutions, or units of the hidden layers.
        latent: Size of the code, ``φ(x)``.
        eps: Smallest magnitude of an entry of ``c``.
        lr: Adam's learning rate, in both phases.
        lr_milestones: Epochs of each phase at which the rate is divided by 10.
        weight_decay: Adam's L2 penalty.
        pretrain_epochs: Epochs of the first phase, which trains the net as the encoder of an autoencoder; 0 to skip it.
        pretrain_weight_decay: L2 penalty in the first phase.
        score: ``distance``, the only one.
        threshold_quantile: Quantile of the held-out samples' scores that becomes the threshold, in (0, 1).

    Attributes:
        centre: ``c``, ``(latent,)``.

    Example:
        >>> module = DeepSVDD(shape=(1, 8, 8))
        >>> {name: tuple(s.shape) for name, s in module.eval().scores(torch.rand(4, 1, 8, 8)).items()}
        {'distance': (4,)}
    """

    monitor = "val/distance"
    centre: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int] = (8, 4),
        latent: int = 32,
        eps: float = 0.1,
        lr: float = 1e-4,
        lr_milestones: Sequence[int] = (50,),
        weight_decay: float = 0.5e-6,
        pretrain_epochs: int = 0,
        pretrain_weight_decay: float = 0.5e-3,
        score: str = "distance",
        threshold_quantile: float = 0.95,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = encoder(shape, widths, latent)
        self.decoder = build("lenet", shape, widths, latent).decoder if pretrain_epochs else None
        self.register_buffer("centre", torch.zeros(latent))

    @property
    def phases(self) -> Sequence[int]:
        """The first epochs of pretraining, if any, and of training."""
        return (0, self.hparams.pretrain_epochs) if self.decoder else (0,)

    def named_optimizers(self) -> dict[str, Optimizer]:
        """Adam for net and decoder in the pretraining, if any, and Adam for the net."""
        h = self.hparams
        optimizers: dict[str, Optimizer] = {}
        if self.decoder:
            parameters = [*self.net.parameters(), *self.decoder.parameters()]
            optimizers["pretraining"] = Adam(parameters, h.lr, weight_decay=h.pretrain_weight_decay)
        optimizers["training"] = Adam(self.net.parameters(), h.lr, weight_decay=h.weight_decay)
        return optimizers

    def scheduler(self, name: str, optimizer: Optimizer) -> MultiStepLR:
        """The schedule, the same for both phases; each counts its own epochs."""
        return MultiStepLR(optimizer, self.hparams.lr_milestones, 0.1)

    def prepare(self, batches: Iterable[Sample]) -> None:
        """Sets ``c`` to the mean code of the training images, with every entry moved away from 0.

        If ``c`` were 0, weights of 0 would be a perfect solution (Proposition 1).
        """
        eps = self.hparams.eps
        centre = torch.cat([self.net(batch.image) for batch in batches]).mean(0)
        sign = torch.where(centre < 0, -1.0, 1.0)
        self.centre.copy_(torch.where(centre.abs() < eps, eps * sign, centre))

    def training_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """Takes one step on the error of the autoencoder in the first phase, and on Eq. 4 in the second."""
        # 1. Pretraining: net and decoder descend ||De(φ(x)) - x||²
        if self.phase < len(self.phases) - 1 and self.decoder:
            loss = squared_error(self.decoder(self.net(batch.image)), batch.image, "sum").mean()
            self.descend("pretraining", loss)
            return {"loss_reconstruction": loss}

        # 2. Training, c fixed: the net descends the mean of ||φ(x) - c||²; the optimiser adds the weight penalty
        loss = self.distance(batch.image).mean()
        self.descend("training", loss)
        return {"loss_distance": loss}

    def distance(self, x: Tensor) -> Tensor:
        """The squared distance from the centre, ``||φ(x) - c||²``, ``(B,)``."""
        return (self.net(x) - self.centre).square().sum(1)

    def embed(self, x: Tensor) -> Tensor:
        """The code ``φ(x)``, ``(B, latent)``."""
        return self.net(x)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """The score ``distance``, the squared distance of ``φ(x)`` from ``c``, ``(B,)``."""
        return {"distance": self.distance(x)}


def encoder(shape: Sequence[int], widths: Sequence[int], latent: int) -> nn.Sequential:
    """A LeNet-type net without biases, with which it could ignore the image (Proposition 2).

    Example:
        >>> sum(p.numel() for p in encoder((1, 28, 28), (8, 4), 32).parameters())
        7272
    """
    layers: list[nn.Module] = []
    if is_flat(shape):
        for inputs, outputs in pairwise([*shape, *widths]):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.LeakyReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], latent, bias=False))
    for inputs, outputs in pairwise([shape[0], *widths]):
        norm = nn.BatchNorm2d(outputs, eps=1e-4, affine=False)
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2, bias=False), norm, nn.LeakyReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    features = widths[-1] * prod(halvings(shape[1:], len(widths))[-1])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, latent, bias=False))
