"""OC-CNN: one-class convolutional neural network (Oza and Patel, IEEE SPL 2018)."""

from ocnn.module import OCCNN

__all__ = ["OCCNN"]
