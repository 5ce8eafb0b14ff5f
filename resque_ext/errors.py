"""Errors that the command line has to know before anything else is loaded."""


class BackendError(RuntimeError):
    """The compiled kernels cannot do what was asked: says what is missing and how to get it."""
