"""The one exception that stands for a user's mistake."""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: one line that says what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `did you mean X? ` for the nearest of the known names, or nothing."""
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""
