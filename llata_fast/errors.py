"""The one exception for mistakes a user can mend."""


class InputError(ValueError):
    """Wrong input: a file, a column, a name, a size. One line says what and where; the CLI exits with 2."""
