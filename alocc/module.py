"""ALOCC: its nets, optimisers, training step and scores."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop
from torch.optim.swa_utils import AveragedModel

from alocc import losses
from alocc.losses import Adversarial
from alocc.networks import normal_start, reconstructor
from alocc.pseudo import crossed, pasted
from common.data import Sample
from common.losses import squared_error
from common.module import OneClassModule, Schedule
from common.networks import discriminator, evaluating


class ALOCC(OneClassModule):
    """A reconstructor R repairs noisy normal images, and a discriminator D scores the repaired image: R distorts anomalies.

    Sabokrou, Khalooei, Fathy and Adeli, "Adversarially Learned One-Class Classifier for Novelty Detection", CVPR 2018.
    Presets in ``configs``: ``paper``, ``official``, ``stable`` and smaller ones; the card says what each is.

    Args:
        shape: ``(C, H, W)`` of an image, or ``(F,)`` of a flat vector, for which the nets are dense.
        encoder_widths: Channels of R's convolutions.
        decoder_widths: Channels of R's transposed convolutions except the last.
        latent: Size of a dense bottleneck in R; None, as published, for no bottleneck.
        discriminator_widths: Channels of D's convolutions.
        discriminator_norm: ``batch``, as published, or ``none``.
        norm_eps: Batch norm's epsilon.
        batch_statistics: Score with the statistics of the batch instead of running ones, as in the released code, so that
            scores depend on the other images of a batch. Training is the same.
        initial_weights: ``normal``, N(0, 0.02²) as in the official code, or PyTorch's ``default``.
        sigma: Standard deviation of the Gaussian noise on R's training inputs, in units of the preprocessed images; or a
            range from which it is drawn for each image.
        clip: Range to which noisy images are clipped; None for no clipping.
        lambda_r: Weight of the reconstruction loss, λ of Eq. 5.
        reconstruction_loss: ``clean``, squared error to the clean image (Eq. 4), or ``noisy_cross_entropy``, as in the code.
        adversarial: R's part of Eq. 3: as printed (``minimax``) or ``non_saturating``.
        alpha: Weight of reconstructions R(X) among what D learns to accept, see :func:`alocc.losses.good_and_bad_loss`.
        beta: Weight of reconstructed pseudo-anomalies among what D learns to reject.
        r_steps: Steps of R after each step of D.
        optimizer: The optimiser of both nets; ``rmsprop`` has TensorFlow's decay and start, ``adam`` betas of 0.5 and 0.999.
        lr_d: Learning rate of D.
        lr_r: Learning rate of R.
        schedule: Schedule of both rates: ``constant``, or ``cosine`` to 0 at the last iteration.
        averaging: Decay of the exponential average of both nets' weights, which is used for scoring; 0 for no average.
        rho: Bound ρ of the stopping rule ``rule: rho``, on the mean ``reconstruction`` score of held-out normals.
        score: ``discriminator_reconstruction``, ``discriminator`` or ``reconstruction``.
        threshold_quantile: Quantile of the held-out samples' scores that becomes the threshold, in (0, 1).

    Raises:
        InputError: A size is below 1, or the numbers of R's layers do not match.

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
        latent: int | None = None,
        discriminator_widths: Sequence[int] = (16, 32, 64, 128),
        discriminator_norm: Literal["batch", "none"] = "batch",
        norm_eps: float = 1e-5,
        batch_statistics: bool = False,
        initial_weights: Literal["normal", "default"] = "normal",
        sigma: float | tuple[float, float] = 0.155,
        clip: tuple[float, float] | None = None,
        lambda_r: float = 0.4,
        reconstruction_loss: Literal["clean", "noisy_cross_entropy"] = "clean",
        adversarial: Adversarial = "non_saturating",
        alpha: float = 0.0,
        beta: float = 0.0,
        r_steps: int = 1,
        optimizer: Literal["adam", "rmsprop"] = "adam",
        lr_d: float = 2e-4,
        lr_r: float = 2e-4,
        schedule: Schedule = "constant",
        averaging: float = 0.0,
        rho: float | None = None,
        score: Literal["discriminator_reconstruction", "discriminator", "reconstruction"] = "discriminator_reconstruction",
        threshold_quantile: float = 0.95,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        norm = partial(nn.BatchNorm2d, eps=norm_eps, track_running_stats=not batch_statistics)
        self.reconstructor = reconstructor(shape, encoder_widths, decoder_widths, latent, norm)
        self.discriminator = discriminator(shape, discriminator_widths, norm if discriminator_norm == "batch" else None)
        if initial_weights == "normal":
            self.apply(normal_start)
        if averaging:
            nets = nn.ModuleList([self.reconstructor, self.discriminator])
            average = partial(exponential_average, decay=averaging)
            self.averaged = AveragedModel(nets, avg_fn=average, use_buffers=True).requires_grad_(False)

    def named_optimizers(self) -> dict[str, Optimizer]:
        """The optimiser of D, then that of R."""
        h = self.hparams
        optimizers: dict[str, Optimizer] = {}
        for name, net, lr in (("D", self.discriminator, h.lr_d), ("R", self.reconstructor, h.lr_r)):
            if h.optimizer == "rmsprop":
                optimizers[name] = RMSprop(net.parameters(), lr, 0.9)
                for weights in net.parameters():  # TensorFlow's mean of squared gradients starts at 1, PyTorch's at 0
                    optimizers[name].state[weights] = {"step": torch.tensor(0.0), "square_avg": torch.ones_like(weights)}
            else:
                optimizers[name] = Adam(net.parameters(), lr, (0.5, 0.999))
        return optimizers

    def scheduler(self, name: str, optimizer: Optimizer) -> dict[str, Any] | None:
        """The schedule, the same for both optimisers."""
        return self.cosine(optimizer) if self.hparams.schedule == "cosine" else None

    def training_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """Takes one step of D on Eq. 3, then ``r_steps`` of R on Eq. 5, all with the same noisy images."""
        h = self.hparams
        # 1. X~ = X + η, X' = R(X~)
        noisy = self.noisy(batch.image)
        reconstruction = self.reconstructor(noisy)

        # 2. D, with R fixed: ascend Eq. 3, log D(X) + log(1 - D(R(X~)))
        with self.toggled("D"):
            loss_d = self.discriminator_loss(batch.image, reconstruction.detach())
            self.descend("D", loss_d)

        # 3. R, with D fixed: descend Eq. 5, L_R+D + λ L_R; the first step reuses the X' that D has just seen
        for step in range(h.r_steps):
            with self.toggled("R"):
                if step > 0:
                    reconstruction = self.reconstructor(noisy)
                loss_adversarial = losses.adversarial_loss(self.discriminator(reconstruction), h.adversarial)
                loss_reconstruction = self.reconstruction_loss(reconstruction, batch.image, noisy)
                self.descend("R", loss_adversarial + h.lambda_r * loss_reconstruction)

        if h.averaging:
            self.averaged.update_parameters(nn.ModuleList([self.reconstructor, self.discriminator]))
        return {"loss_d": loss_d, "loss_adversarial": loss_adversarial, "loss_reconstruction": loss_reconstruction}

    def noisy(self, image: Tensor) -> Tensor:
        """``X~ = X + η``: adds fresh noise with standard deviation ``sigma``, then clips to ``clip`` if given."""
        sigma, clip = self.hparams.sigma, self.hparams.clip
        if isinstance(sigma, Sequence):
            low, high = sigma
            sigma = low + (high - low) * torch.rand(len(image), *[1] * (image.ndim - 1), device=image.device)
        noisy = image + sigma * torch.randn_like(image)
        return noisy if clip is None else noisy.clamp(*clip)

    def discriminator_loss(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """The negative of Eq. 3; with ``alpha`` or ``beta``, D also learns from R(X) and from repaired pseudo-anomalies.

        Half of the pseudo-anomalies are :func:`pasted <alocc.pseudo.pasted>` images, half :func:`crossed
        <alocc.pseudo.crossed>` codes. R repairs them and clean images in eval mode, with its current weights; the test uses
        the averaged R if ``averaging`` is set.
        """
        h = self.hparams
        if not (h.alpha or h.beta):
            return losses.discriminator_loss(self.discriminator(image), self.discriminator(reconstruction))
        half = len(image) // 2
        with evaluating(self.reconstructor):
            latent = self.reconstructor.encoder(torch.cat([image, pasted(image[:half])]))
            latent = torch.cat([latent, crossed(latent[half : len(image)])])
            good, bad = self.reconstructor.decoder(latent).chunk(2)
        on_image, on_good, on_noisy, on_bad = self.discriminator(torch.cat([image, good, reconstruction, bad])).chunk(4)
        return losses.good_and_bad_loss(on_image, on_good, on_noisy, on_bad, h.alpha, h.beta)

    def reconstruction_loss(self, reconstruction: Tensor, image: Tensor, noisy: Tensor) -> Tensor:
        """Eq. 4 with the mean over an image instead of the sum, or the official code's cross-entropy; a scalar."""
        if self.hparams.reconstruction_loss == "clean":
            return squared_error(reconstruction, image).mean()
        return losses.cross_entropy_to_noisy(reconstruction, noisy).mean()

    def embed(self, x: Tensor) -> Tensor:
        """The code of R's encoder, ``(B, D)``."""
        latent: Tensor = self.scoring_nets[0].encoder(x)
        return latent.flatten(1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The reconstruction ``R(x)``, of the shape of ``x``."""
        reconstruction: Tensor = self.scoring_nets[0](x)
        return reconstruction

    @property
    def scoring_nets(self) -> Any:
        """The R and D that are used for scoring: averaged if ``averaging`` is set."""
        return self.averaged.module if self.hparams.averaging else (self.reconstructor, self.discriminator)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """``-logit D(R(x))`` (Eq. 7), ``-logit D(x)`` (Eq. 6) and the mean squared error of ``R(x)``; each ``(B,)``."""
        reconstructor, discriminator = self.scoring_nets
        reconstruction = reconstructor(x)
        return {
            "discriminator_reconstruction": -discriminator(reconstruction),
            "discriminator": -discriminator(x),
            "reconstruction": squared_error(reconstruction, x),
        }


def exponential_average(averaged: Tensor, current: Tensor, n_averaged: Tensor, decay: float) -> Tensor:
    """Updates the exponential average of a weight; the decay starts low, so that the first weights are soon forgotten.

    After ``n`` updates it is ``min(decay, (1 + n) / (10 + n))``, as in TensorFlow. Integer counters are copied.

    Args:
        averaged: The average so far, of any shape.
        current: The weight, of the same shape.
        n_averaged: ``n``, the number of updates so far, a scalar.
        decay: Share of the old average that an update keeps, in [0, 1).

    Returns:
        The new average, of the same shape.

    Example:
        >>> exponential_average(torch.zeros(1), torch.ones(1), torch.tensor(8), decay=0.99)
        tensor([0.5000])
    """
    if not current.is_floating_point():
        return current
    return averaged.lerp(current, 1 - ((1 + n_averaged) / (10 + n_averaged)).clamp(max=decay).to(current))
