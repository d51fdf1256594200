"""The one exception that means: the user's input is wrong, and this sentence says how."""


class UserError(ValueError):
    """A mistake in the user's input.

    The message is one sentence that names the argument or file, what was expected, what was found
    and what to do. Commands print it without a traceback and leave with exit code 2.
    """
