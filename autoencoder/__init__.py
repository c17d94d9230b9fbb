"""A convolutional autoencoder whose reconstruction error is the anomaly score."""

from autoencoder.module import Autoencoder

__all__ = ["Autoencoder"]
