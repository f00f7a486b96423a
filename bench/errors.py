"""The one exception that means "the user can fix this": one line, never a stack trace."""


class UserError(Exception):
    """Bad input. The message names the field, the value and the fix."""
