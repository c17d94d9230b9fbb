"""OCGAN: one-class novelty detection with a constrained latent space (Perera et al., CVPR 2019)."""

from ocgan.module import OCGAN

__all__ = ["OCGAN"]
