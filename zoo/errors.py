"""The one exception that reaches the user as a single line."""


class ZooError(Exception):
    """Bad input: a recipe name, an option, a folder, a row, a checkpoint.

    The message says what is wrong and what to do. The command line prints it as one line and exits with status 2.
    """


def first_line(error: Exception) -> str:
    """First line of what an error says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
