"""OCGAN: its nets, optimisers, training step and scores."""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from common.data import Sample
from common.errors import InputError
from common.losses import Reduction, add_noise, squared_error
from common.module import OneClassModule, Schedule
from common.networks import evaluating
from ocgan.figures import latent_histogram, mining_grid
from ocgan.losses import critic_loss, fooling_loss, relative_error
from ocgan.mining import mine
from ocgan.networks import Network, build, image_critic, kept_statistics, latent_critic


class OCGAN(OneClassModule):
    """A denoising autoencoder whose whole latent cube decodes to normal images, so that an anomaly cannot be reconstructed.

    Perera, Nallapati and Xiang, "OCGAN: One-Class Novelty Detection Using GANs With Constrained Latent Representations",
    CVPR 2019. Presets in ``configs``: ``paper``, ``official``, ``tuned`` and smaller ones; the card says what each is.

    Args:
        shape: ``(C, H, W)`` of an image, or ``(F,)`` of a flat vector, for which the nets are dense.
        network: ``padded``, the nets of the text, for any size, or ``released``, those of the code, for 61x61.
        width: Channels of the encoder's first convolution.
        latent: ``d``, the size of the latent cube (-1, 1)^d.
        visual_width: Channels of the visual discriminator's first convolution.
        classifier_width: Channels of the classifier's first convolution.
        noise_std: Standard deviation of the Gaussian noise on training inputs, in units of the preprocessed images.
        lambda_mse: Weight of the reconstruction loss, λ.
        reduction: Whether the squared error of an image is summed or averaged in the loss; scores are means.
        weight_latent: Weight of the encoder's loss against the latent discriminator; 0 removes the discriminator.
        weight_visual: Weight of the decoder's loss against the visual discriminator; 0 removes it and the classifier.
        mining_steps: Number of mining steps; 0 trains the classifier without mining, None removes the classifier.
        mining_step_size: Step size of each sub-iteration.
        mining_start: Fraction of the epochs before mining begins, in [0, 1].
        random_share: Number of random latents per image of the batch, in (0, 1].
        inference_codes: Whether latent discriminator and classifier see codes and reconstructions made in inference mode.
        lr: Adam's rate for encoder and decoder; betas are 0.5 and 0.999.
        lr_critics: Adam's rate for the latent discriminator, the visual discriminator and the classifier.
        schedule: Schedule of both rates: ``constant``, or ``cosine`` to 0 at the last iteration.
        score: ``reconstruction``, ``relative_reconstruction`` or ``discriminator``.
        threshold_quantile: Quantile of the held-out samples' scores that becomes the threshold, in (0, 1).

    Raises:
        InputError: A width or the latent size is below 1, or the ``released`` nets get another size than 61x61.

    Example:
        >>> import torch
        >>> module = OCGAN(shape=(1, 8, 8), width=8, latent=4, visual_width=4, classifier_width=4)
        >>> {name: tuple(s.shape) for name, s in module.eval().scores(torch.rand(4, 1, 8, 8)).items()}
        {'reconstruction': (4,), 'relative_reconstruction': (4,), 'discriminator': (4,)}
    """

    def __init__(
        self,
        shape: Sequence[int],
        network: Network = "padded",
        width: int = 64,
        latent: int = 16,
        visual_width: int = 12,
        classifier_width: int = 64,
        noise_std: float = 0.2,
        lambda_mse: float = 10.0,
        reduction: Reduction = "sum",
        weight_latent: float = 1.0,
        weight_visual: float = 1.0,
        mining_steps: int | None = 5,
        mining_step_size: float = 2.0,
        mining_start: float = 0.5,
        random_share: float = 1.0,
        inference_codes: bool = False,
        lr: float = 2e-4,
        lr_critics: float = 2e-4,
        schedule: Schedule = "constant",
        score: Literal["reconstruction", "relative_reconstruction", "discriminator"] = "reconstruction",
        threshold_quantile: float = 0.95,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.encoder, self.decoder = build(network, shape, width, latent)
        self.critics = nn.ModuleDict()
        if weight_latent:
            self.critics["latent_discriminator"] = latent_critic(network, latent)
        if weight_visual:
            self.critics["visual_discriminator"] = image_critic(network, shape, visual_width)
        if weight_visual and mining_steps is not None:
            self.critics["classifier"] = image_critic(network, shape, classifier_width)

    def named_optimizers(self) -> dict[str, Optimizer]:
        """Adam for the classifier, the latent and the visual discriminator, where they exist, then for encoder and decoder."""
        h, betas = self.hparams, (0.5, 0.999)
        optimizers: dict[str, Optimizer] = {}
        for name in ("classifier", "latent_discriminator", "visual_discriminator"):
            if name in self.critics:
                optimizers[name] = Adam(self.critics[name].parameters(), h.lr_critics, betas)
        optimizers["generator"] = Adam(chain(self.encoder.parameters(), self.decoder.parameters()), h.lr, betas)
        return optimizers

    def scheduler(self, name: str, optimizer: Optimizer) -> dict[str, Any] | None:
        """The schedule, the same for all optimisers."""
        return self.cosine(optimizer) if self.hparams.schedule == "cosine" else None

    def training_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """Algorithm 1: trains the classifier, the two discriminators, then mines, then trains encoder and decoder.

        Codes, reconstructions and decoded random latents are computed once, and reused until one of their nets is updated.
        """
        h, image = self.hparams, batch.image
        losses: dict[str, Tensor] = {}

        # l1 = En(x + n) and its image; l2 ~ U(-1, 1)^d and, for some of them, their images
        noisy = add_noise(image, h.noise_std)
        # Before batch norm sees this batch, whose statistics would make inference and training mode nearly the same
        inferred = self.inferred(noisy) if h.inference_codes else None
        latent = self.encoder(noisy)
        reconstruction = self.decoder(latent)
        code, decoded = inferred or (latent.detach(), reconstruction.detach())
        random = 2 * torch.rand_like(code) - 1
        few = random[: max(2, round(h.random_share * len(random)))]
        fake: Any = self.decoded(few, graph=not self.mines) if "visual_discriminator" in self.critics else None

        # 1. Classifier, all other nets fixed: C(De(l2)) -> 0, C(De(l1)) -> 1
        if "classifier" in self.critics:
            losses["loss_classifier"] = self.critic_step("classifier", decoded, fake.detach())

        # 2. Discriminators, never on mined latents: D_l(l1) -> 0, D_l(l2) -> 1, D_v(De(l2)) -> 0, D_v(x) -> 1
        if "latent_discriminator" in self.critics:
            losses["loss_latent_discriminator"] = self.critic_step("latent_discriminator", random, code)
        if "visual_discriminator" in self.critics:
            losses["loss_visual_discriminator"] = self.critic_step("visual_discriminator", image, fake.detach())

        # 3. Informative-negative mining, all nets fixed: l2 moves to where C takes De(l2) for abnormal
        if self.mines:
            fake = self.decoded(self.mined(few), graph=True)

        # 4. Generator, all critics fixed: D_l(l1) -> 1, D_v(De(l2)) -> 1, and λ ||x - De(l1)||²
        with self.toggled("generator"):
            terms = self.generator_losses(image, latent, reconstruction, fake)
            weights = self.generator_weights
            self.descend("generator", reduce(torch.add, [weights.get(name, 1.0) * loss for name, loss in terms.items()]))
        return losses | terms

    def critic_step(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        """Takes one step of a critic towards 1 on ``real`` and 0 on ``fake``; returns its loss, a scalar."""
        critic = self.critics[name]
        with self.toggled(name):
            loss = critic_loss(critic(real), critic(fake))
            self.descend(name, loss)
        return loss

    def generator_losses(self, image: Tensor, latent: Tensor, reconstruction: Tensor, fake: Tensor | None) -> dict[str, Tensor]:
        """The loss terms of encoder and decoder; :attr:`generator_weights` has their weights, and a new term has weight 1.

        Args:
            image: ``(B, *shape)``, ``x``.
            latent: ``(B, d)``, ``En(x + n)``.
            reconstruction: ``(B, *shape)``, ``De(En(x + n))``.
            fake: ``(B', *shape)`` decoded random latents, mined once mining has begun; None without a visual discriminator.

        Returns:
            Scalar losses by name, logged as ``train/<name>``.
        """
        terms = {"loss_reconstruction": self.reconstruction_loss(reconstruction, image)}
        if "latent_discriminator" in self.critics:
            terms["loss_latent"] = fooling_loss(self.critics["latent_discriminator"](latent))
        if fake is not None:
            terms["loss_visual"] = fooling_loss(self.critics["visual_discriminator"](fake))
        return terms

    @property
    def generator_weights(self) -> dict[str, float]:
        """The weights of :meth:`generator_losses` by name."""
        h = self.hparams
        return {"loss_reconstruction": h.lambda_mse, "loss_latent": h.weight_latent, "loss_visual": h.weight_visual}

    def reconstruction_loss(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """The reconstruction loss ``l_MSE``: the squared error, averaged over the batch, a scalar."""
        return squared_error(reconstruction, image, self.hparams.reduction).mean()

    @property
    def mines(self) -> bool:
        """Whether the decoder learns from mined latents in the current epoch.

        Raises InputError if mining begins after a share of the epochs, and their number is not known.
        """
        h, epochs = self.hparams, self.trainer.max_epochs
        if "classifier" not in self.critics or not h.mining_steps:
            return False
        if h.mining_start and (epochs is None or epochs < 0):
            raise InputError("mining_start is a share of the epochs: give trainer.max_epochs")
        return bool(self.current_epoch >= h.mining_start * (epochs or 0))

    def decoded(self, latent: Tensor, graph: bool) -> Tensor:
        """Decodes random latents, ``(B, d)`` to ``(B, *shape)``, without updating batch norm's running statistics."""
        with torch.set_grad_enabled(graph), kept_statistics(self.decoder):
            image: Tensor = self.decoder(latent)
        return image

    def mined(self, latent: Tensor) -> Tensor:
        """Mines from ``latent``, ``(B, d)``, with the current nets, see :func:`ocgan.mining.mine`."""
        h, classifier = self.hparams, self.critics["classifier"]
        with kept_statistics(self.decoder, classifier):
            return mine(self.decoder, classifier, latent, h.mining_steps, h.mining_step_size)

    def inferred(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """Code ``(B, d)`` and reconstruction ``(B, *shape)`` in inference mode, as the released code's critics see them.

        They depend on batch norm's running statistics, so the training step calls this before its own pass updates them.
        """
        with evaluating(self.encoder, self.decoder):
            latent = self.encoder(noisy)
            return latent, self.decoder(latent)

    def embed(self, x: Tensor) -> Tensor:
        """The code ``En(x)``, ``(B, d)`` in (-1, 1)."""
        latent: Tensor = self.encoder(x)
        return latent

    def reconstruct(self, x: Tensor) -> Tensor:
        """The reconstruction ``De(En(x))``, of the shape of ``x``."""
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Squared error of ``De(En(x))``, the same relative to contrast, and ``-logit D_v(x)`` if D_v exists; each ``(B,)``."""
        reconstruction = self.reconstruct(x)
        scores = {
            "reconstruction": squared_error(reconstruction, x),
            "relative_reconstruction": relative_error(reconstruction, x),
        }
        if "visual_discriminator" in self.critics:
            scores["discriminator"] = -self.critics["visual_discriminator"](x)
        return scores

    @torch.no_grad()
    def figures(self, x: Tensor) -> Mapping[str, Figure]:
        """Draws decoded random latents before and after mining, with the classifier's opinion, and a histogram of the codes.

        Args:
            x: ``(B, *shape)`` held-out normal images.
        """
        random = torch.rand(16, self.hparams.latent, generator=torch.Generator().manual_seed(0)).to(x) * 2 - 1
        drawn = {"latent_histogram": latent_histogram(self.embed(x))}
        if x.ndim != 4:
            return drawn
        images, logits = {"random": self.decoder(random)}, {}
        if "classifier" in self.critics:
            h, classifier = self.hparams, self.critics["classifier"]
            # Mining needs gradients, which the validation loop's inference mode forbids
            with torch.inference_mode(False), torch.enable_grad():
                mined = mine(self.decoder, classifier, random.clone(), h.mining_steps, h.mining_step_size)
            images["mined"] = self.decoder(mined)
            logits = {name: classifier(image) for name, image in images.items()}
        return drawn | {"random_latents": mining_grid(images, logits)}
