"""The exception for mistakes that a user can mend, and the warning for what may be one."""


class InputError(ValueError):
    """Wrong input: a file, a column, a name, a size. One line says what and where; the CLI exits with 2."""


class RankInputError(InputError):
    """An InputError that one rank alone may know of, which then has to say so itself."""


class InputWarning(UserWarning):
    """Input that is taken, but may not mean what it says; the CLI shows it as one line."""


def in_one_line(error: BaseException) -> str:
    """The message of an error, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
