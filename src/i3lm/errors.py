"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake the user can mend: one line that says what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
