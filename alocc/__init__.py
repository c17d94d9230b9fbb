"""ALOCC: the adversarially learned one-class classifier (Sabokrou et al., CVPR 2018)."""

from alocc.module import ALOCC

__all__ = ["ALOCC"]
