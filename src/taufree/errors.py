"""Errors that are the user's to mend: one clear line, no traceback on the command line."""


class UserError(Exception):
    """Bad input. The message is one sentence that says what is wrong and what to do."""


class UnsupportedError(UserError, NotImplementedError):
    """A calculation that this functional cannot do; the message names what works instead."""


class DomainWarning(UserWarning):
    """A calculation beyond what the model was trained on: its errors there are not known."""


class WeightsError(UserError):
    """Weights that are missing, corrupted, or made for another architecture or parent."""
