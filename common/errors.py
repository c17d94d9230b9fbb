"""The one exception that means: the user can fix this."""


class InputError(ValueError):
    """A mistake in what the user asked for, told in one line; the commands end with exit status 2."""


class DataMissingError(InputError):
    """A data set that is not there and is never downloaded by itself."""


class WeightsMissingError(InputError):
    """A net's pretrained weights that are not there and cannot be downloaded."""


class UnreadableError(InputError):
    """Image files, or a checkpoint, that cannot be read as such."""
