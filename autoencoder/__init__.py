"""Reconstruction error of a convolutional autoencoder as an anomaly score."""

from autoencoder.module import Autoencoder

__all__ = ["Autoencoder"]
