"""OCGAN with one more loss term: an example of a variant of a paper."""

from typing import Any

from torch import Tensor

from ocgan import OCGAN


class L1OCGAN(OCGAN):
    """OCGAN whose encoder also minimises ``lambda_l1`` times the mean magnitude of its codes.

    Args:
        lambda_l1: Weight of the new term.
        **ocgan: The arguments of :class:`ocgan.OCGAN`.
    """

    def __init__(self, lambda_l1: float = 0.1, **ocgan: Any) -> None:
        super().__init__(**ocgan)

    def generator_losses(self, image: Tensor, latent: Tensor, *others: Any) -> dict[str, Tensor]:
        """Adds ``loss_l1`` to OCGAN's terms."""
        return super().generator_losses(image, latent, *others) | {"loss_l1": self.hparams.lambda_l1 * latent.abs().mean()}
