"""The exception for mistakes that a user can fix, and the warning for input that may be one."""


class InputError(ValueError):
    """Wrong input: a file, a column, a name, a size. The message is one line (what, where); the CLI exits with 2."""


class RankInputError(InputError):
    """An InputError that may occur on a single rank, which must then report it itself."""


class InputWarning(UserWarning):
    """Input that is accepted but may be a mistake; the CLI shows it as one line."""


def in_one_line(error: BaseException) -> str:
    """An error's message in one line, or its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
