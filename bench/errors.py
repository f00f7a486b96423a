"""The one exception that means "the user can fix this": shown as one line, never as a stack trace."""


class UserError(Exception):
    """Bad input. The message names the field, the value and the fix."""
