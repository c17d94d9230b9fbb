"""The convolutional autoencoder: its optimiser, training step and score."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from autoencoder.networks import build
from common.data import Sample
from common.losses import Reduction, add_noise, squared_error
from common.module import OneClassModule


class Autoencoder(OneClassModule):
    """An autoencoder that is trained on normal images and reconstructs others worse: its error is the score.

    Presets in ``configs``: the published MNIST recipe (``paper``), the autoencoder that Deep SVDD compares with (``dcae``),
    OCGAN's ablation row "AE only" (``denoising``) and smaller ones.

    Args:
        shape: ``(C, H, W)`` of an image, or ``(F,)`` of a flat vector, for which the nets are dense.
        network: A key of :data:`autoencoder.networks.NETWORKS`. ``strided`` and ``lenet`` reconstruct to (0, 1), for data with
            normalization ``unit`` or ``gcn``; ``bounded`` to (-1, 1), for ``symmetric``.
        widths: Channels (or units) of the encoder's layers, mirrored in the decoder. ``bounded`` takes the first one, and
            doubles it twice.
        latent: Size of the code.
        noise_std: Standard deviation of the Gaussian noise on training inputs, in units of the preprocessed images.
        reduction: Whether the squared error of an image is summed or averaged, in loss and score.
        lr: Adam's learning rate.
        betas: Adam's decay rates.
        weight_decay: Adam's L2 penalty.
        schedule: ``milestones`` divides the rate by 10 at each epoch of ``lr_milestones``; ``inverse_time`` sets it to
            ``lr / (1 + lr_decay * t)`` at iteration ``t``; ``cosine`` falls to 0 at the last iteration.
        lr_milestones: Epochs, for ``milestones``.
        lr_decay: Decay per iteration, for ``inverse_time``.
        score: ``reconstruction``, the only one.
        threshold_quantile: Quantile of the held-out samples' scores that becomes the threshold, in (0, 1).

    Raises:
        InputError: The network is unknown, a size is below 1, or ``lenet`` gets one width.

    Example:
        >>> import torch
        >>> module = Autoencoder(shape=(1, 8, 8))
        >>> {name: tuple(s.shape) for name, s in module.eval().scores(torch.rand(4, 1, 8, 8)).items()}
        {'reconstruction': (4,)}
    """

    def __init__(
        self,
        shape: Sequence[int],
        network: str = "strided",
        widths: Sequence[int] = (32, 64),
        latent: int = 16,
        noise_std: float = 0.0,
        reduction: Reduction = "mean",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        schedule: Literal["milestones", "inverse_time", "cosine"] = "milestones",
        lr_milestones: Sequence[int] = (),
        lr_decay: float = 0.0,
        score: Literal["reconstruction"] = "reconstruction",
        threshold_quantile: float = 0.95,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.encoder, self.decoder = build(network, shape, widths, latent)

    def named_optimizers(self) -> dict[str, Optimizer]:
        """Adam for encoder and decoder."""
        h = self.hparams
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        return {"autoencoder": Adam(parameters, h.lr, h.betas, weight_decay=h.weight_decay)}

    def scheduler(self, name: str, optimizer: Optimizer) -> LRScheduler | dict[str, Any]:
        """The schedule of the learning rate: by epoch for ``milestones``, by iteration for the others."""
        h = self.hparams
        if h.schedule == "milestones":
            return MultiStepLR(optimizer, h.lr_milestones, 0.1)
        if h.schedule == "inverse_time":
            return {"scheduler": LambdaLR(optimizer, lambda t: 1 / (1 + h.lr_decay * t)), "interval": "step"}
        return self.cosine(optimizer)

    def training_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """Takes one step on the mean reconstruction loss between ``De(En(x + n))`` and ``x``."""
        # 1. x' = De(En(x + n)), fresh noise n
        reconstruction = self.reconstruct(add_noise(batch.image, self.hparams.noise_std))

        # 2. En and De: descend mean e(x', x)
        loss = self.reconstruction_loss(reconstruction, batch.image)
        self.descend("autoencoder", loss)
        return {"loss": loss}

    def reconstruction_loss(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """The squared error, averaged over the batch, a scalar."""
        return squared_error(reconstruction, image, self.hparams.reduction).mean()

    def embed(self, x: Tensor) -> Tensor:
        """The code of ``x``, ``(B, *shape)`` to ``(B, latent)``."""
        return self.encoder(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The reconstruction ``De(En(x))``, of the shape of ``x``."""
        return self.decoder(self.encoder(x))

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """The score ``reconstruction``: the squared error between ``x`` and ``De(En(x))``, without noise, ``(B,)``."""
        return {"reconstruction": squared_error(self.reconstruct(x), x, self.hparams.reduction)}
