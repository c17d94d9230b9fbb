"""Exceptions for mistakes that the user can fix."""


class InputError(ValueError):
    """A mistake that the user can fix, described in one line; commands end with exit status 2."""


class DataMissingError(InputError):
    """A data set that is missing and cannot be downloaded automatically."""


class WeightsMissingError(InputError):
    """Pretrained weights of a net that are missing and cannot be downloaded."""


class UnreadableError(InputError):
    """Image files or a checkpoint that cannot be read."""
