"""The two errors that the `marconi` command turns into a message and an exit code."""


class BadInputError(ValueError):
    """A flag, file or value can't be used. The message names it and says what to do. Exit code 2."""


class CheckFailedError(RuntimeError):
    """A run or a check ended, and its answer is no. Exit code 1."""
