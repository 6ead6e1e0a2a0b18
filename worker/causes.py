"""What an exception says to people."""

_LINE_LEN = 300


def first_cause(error: BaseException) -> BaseException:
    """Return the first exception of a group of groups; any other is its own cause."""
    return first_cause(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def one_line(error: BaseException) -> str:
    """Return the beginning of what the first cause says, on one line."""
    return " ".join(str(first_cause(error)).split())[:_LINE_LEN]
