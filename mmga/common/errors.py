"""The exception that means: the user's input is wrong, and this sentence says how."""


class UserError(ValueError):
    """A mistake in the user's input.

    The message is one sentence that names the argument or file, what was expected, what was found
    and what to do. Commands print it without a traceback and leave with exit code 2.
    """


class PeerError(UserError):
    """Another process of the same run has met an error and reports it; this one only leaves.

    Attributes:
        code: exit code of that error: 2 for the user's mistake, 1 for anything else.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code
