"""The one error that a user can mend."""


class SubFitError(Exception):
    """What was wrong, where, and what would be right, in one line; the command line prints it and exits with code 2."""
