"""The adversarially learned one-class classifier."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from alocc.losses import Adversarial, adversarial_loss, cross_entropy_to_noisy, discriminator_loss
from alocc.networks import discriminator, reconstructor
from common.data import Sample
from common.losses import add_noise, squared_error
from common.module import OneClassModule


class ALOCC(OneClassModule):
    """R repairs noisy normal images, D tells clean ones from repaired ones; an anomaly is what R repairs badly, for D.

    Sabokrou, Khalooei, Fathy and Adeli, "Adversarially Learned One-Class Classifier for Novelty Detection", CVPR 2018.
    Presets in ``configs``: ``paper``, ``official``, ``stable`` and smaller ones; the card says what each is.

    Args:
        shape: ``(C, H, W)`` of an image, or ``(F,)`` of a flat vector, for which the nets are dense.
        encoder_widths: Channels of R's convolutions.
        decoder_widths: Channels of R's transposed convolutions but the last.
        discriminator_widths: Channels of D's convolutions.
        norm_eps: Batch norm's epsilon.
        sigma: Standard deviation of the noise on R's training input, in the images' units.
        clip: Range to which noisy images are clipped, if at all.
        lambda_r: Weight of the reconstruction loss, λ of Eq. 5.
        reconstruction_loss: ``clean``, Eq. 4: mean squared error to the clean image; or ``noisy_cross_entropy``, the code's.
        adversarial: R's part of Eq. 3: literally (``minimax``) or ``non_saturating``.
        r_steps: Steps of R after each step of D.
        optimizer: Of both nets; ``rmsprop`` has TensorFlow's decay of 0.9.
        lr: Learning rate of both.
        batch_statistics: Batch norm has no running statistics, so that scores depend on the other images of their batch, as
            in the released code. Training is the same.
        rho: Bound of the stopping rule, ρ, on the held-out normals' mean ``reconstruction``; used by ``rule: rho``.
        score: ``discriminator_reconstruction``, ``discriminator`` or ``reconstruction``.
        threshold_quantile: Of the held-out samples' scores, in (0, 1).

    Example:
        >>> import torch
        >>> module = ALOCC(shape=(1, 8, 8), encoder_widths=(8, 16), decoder_widths=(8,), discriminator_widths=(8, 16))
        >>> {name: tuple(s.shape) for name, s in module.eval().scores(torch.rand(4, 1, 8, 8)).items()}
        {'discriminator_reconstruction': (4,), 'discriminator': (4,), 'reconstruction': (4,)}
    """

    def __init__(
        self,
        shape: Sequence[int],
        encoder_widths: Sequence[int] = (32, 64, 128),
        decoder_widths: Sequence[int] = (32, 16),
        discriminator_widths: Sequence[int] = (16, 32, 64, 128),
        norm_eps: float = 1e-5,
        sigma: float = 0.155,
        clip: tuple[float, float] | None = None,
        lambda_r: float = 0.4,
        reconstruction_loss: Literal["clean", "noisy_cross_entropy"] = "clean",
        adversarial: Adversarial = "non_saturating",
        r_steps: int = 1,
        optimizer: Literal["adam", "rmsprop"] = "adam",
        lr: float = 2e-4,
        batch_statistics: bool = False,
        rho: float | None = None,
        score: Literal["discriminator_reconstruction", "discriminator", "reconstruction"] = "discriminator_reconstruction",
        threshold_quantile: float = 0.95,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        norm = partial(nn.BatchNorm2d, eps=norm_eps, track_running_stats=not batch_statistics)
        self.reconstructor = reconstructor(shape, encoder_widths, decoder_widths, norm)
        self.discriminator = discriminator(shape, discriminator_widths, norm)

    def configure_optimizers(self) -> list[Optimizer]:
        """One for D, then one for R."""
        nets = (self.discriminator, self.reconstructor)
        if self.hparams.optimizer == "rmsprop":
            return [RMSprop(net.parameters(), self.hparams.lr, alpha=0.9) for net in nets]
        return [Adam(net.parameters(), self.hparams.lr, betas=(0.5, 0.999)) for net in nets]

    def training_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """D down the negative of Eq. 3, then R ``r_steps`` times down Eq. 5; one noisy image for all of them.

        R's first step goes through the very reconstruction that D has just seen, judged by D as it is now.
        """
        h = self.hparams
        optimizer_d, optimizer_r = self.optimizers()  # type: ignore[attr-defined]
        noisy = add_noise(batch.image, h.sigma)
        if h.clip is not None:
            noisy = noisy.clamp(*h.clip)
        reconstruction = self.reconstructor(noisy)

        with self.toggled_optimizer(optimizer_d):
            loss_d = discriminator_loss(self.discriminator(batch.image), self.discriminator(reconstruction.detach()))
            self.descend(optimizer_d, loss_d)

        for step in range(h.r_steps):
            with self.toggled_optimizer(optimizer_r):
                reconstruction = reconstruction if step == 0 else self.reconstructor(noisy)
                adversarial = adversarial_loss(self.discriminator(reconstruction), h.adversarial)
                error = self.reconstruction_loss(reconstruction, batch.image, noisy).mean()
                self.descend(optimizer_r, adversarial + h.lambda_r * error)
        return {"loss_d": loss_d, "loss_adversarial": adversarial, "loss_reconstruction": error}

    def reconstruction_loss(self, reconstruction: Tensor, image: Tensor, noisy: Tensor) -> Tensor:
        """``(B,)``: Eq. 4 with the mean over an image in place of the sum, or the official code's cross-entropy."""
        if self.hparams.reconstruction_loss == "clean":
            return squared_error(reconstruction, image)
        return cross_entropy_to_noisy(reconstruction, noisy)

    def reconstruct(self, x: Tensor) -> Tensor:
        """``R(x)``, of the shape of ``x``."""
        return self.reconstructor(x)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """``-logit D(R(x))`` (Eq. 7), ``-logit D(x)`` (Eq. 6) and the mean squared error of ``R(x)``; each ``(B,)``."""
        reconstruction = self.reconstructor(x)
        return {
            "discriminator_reconstruction": -self.discriminator(reconstruction),
            "discriminator": -self.discriminator(x),
            "reconstruction": squared_error(reconstruction, x),
        }
