"""The contract of :class:`common.module.OneClassModule`, as checks that any module can be put to.

``check_module(MyMethod)`` runs them all, and so does ``oneclass check my_idea.MyMethod``. Each check takes a factory and raises
AssertionError with what is wrong.
"""

from common.testing.contract import CHECKS, check_module, main
from common.testing.toys import Factory, fit, optimizer_steps, toy_loader, toy_samples, trained

__all__ = ["CHECKS", "Factory", "check_module", "fit", "main", "optimizer_steps", "toy_loader", "toy_samples", "trained"]
