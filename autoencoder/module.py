"""The convolutional autoencoder as a one-class detector."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR

from autoencoder.networks import build
from common.data import Sample
from common.losses import Reduction, add_noise, squared_error
from common.module import OneClassModule


class Autoencoder(OneClassModule):
    """Trained to reconstruct normal images, it reconstructs others worse: the error is the score.

    The presets in ``configs`` are the published MNIST recipe (``paper``), the autoencoder that Deep SVDD compares with
    (``dcae``) and OCGAN's ablation row "AE only" (``denoising``).

    Args:
        shape: ``(C, H, W)`` of an image, or ``(F,)`` of a flat vector, for which the nets are dense.
        network: A key of :data:`autoencoder.networks.NETWORKS`.
        widths: Channels (or units) of the encoder's layers, mirrored in the decoder.
        latent: Size of the code.
        noise_std: Standard deviation of the Gaussian noise on the training input, in the images' units.
        reduction: Of the squared error over an image, in loss and score alike.
        lr: Adam's learning rate.
        betas: Adam's.
        weight_decay: Adam's L2 penalty.
        schedule: Of the learning rate: a tenth at each of ``milestones``; ``inverse_time``, ``lr / (1 + lr_decay * t)`` at
            iteration ``t``; or ``cosine``, to 0 at the last iteration.
        lr_milestones: Epochs.
        lr_decay: Per iteration.
        score: There is one, ``reconstruction``.
        threshold_quantile: Of the held-out samples' scores, in (0, 1).

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
        score: str = "reconstruction",
        threshold_quantile: float = 0.95,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.encoder, self.decoder = build(network, shape, widths, latent)

    def configure_optimizers(self) -> Any:
        """Adam over encoder and decoder, and the schedule."""
        h = self.hparams
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        adam = Adam(parameters, h.lr, h.betas, weight_decay=h.weight_decay)
        if h.schedule == "cosine":
            by_step: LRScheduler = CosineAnnealingLR(adam, int(self.trainer.estimated_stepping_batches))
        elif h.schedule == "inverse_time":
            by_step = LambdaLR(adam, lambda t: 1 / (1 + h.lr_decay * t))
        else:
            return {"optimizer": adam, "lr_scheduler": MultiStepLR(adam, h.lr_milestones, 0.1)}
        return {"optimizer": adam, "lr_scheduler": {"scheduler": by_step, "interval": "step"}}

    def training_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """One step down the mean of :func:`common.losses.squared_error` between ``De(En(x + n))`` and ``x``."""
        noisy = add_noise(batch.image, self.hparams.noise_std)
        loss = squared_error(self.reconstruct(noisy), batch.image, self.hparams.reduction).mean()
        self.descend(self.optimizers(), loss)
        return {"loss": loss}

    def embed(self, x: Tensor) -> Tensor:
        """``(B, *shape)`` to the code, ``(B, latent)``."""
        return self.encoder(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """``De(En(x))``, of the shape of ``x``."""
        return self.decoder(self.encoder(x))

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """``reconstruction``: the squared error between ``x`` and ``De(En(x))``, without noise, ``(B,)``."""
        return {"reconstruction": squared_error(self.reconstruct(x), x, self.hparams.reduction)}
