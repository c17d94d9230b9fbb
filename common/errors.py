"""The exceptions that mean: the user can fix this."""


class InputError(ValueError):
    """A mistake in what the user asked for, told in one line; the commands end with exit status 2."""


class DataMissingError(InputError):
    """A published data set that is never downloaded unasked is not where it is looked for."""
