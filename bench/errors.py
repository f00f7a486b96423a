"""The exceptions that mean "the user can fix this": one line, never a stack trace."""


class UserError(Exception):
    """Bad input. The message names the field, the value and the fix."""


class RunStopped(Exception):
    """A run that was under way cannot go on; what is finished is kept, and a second run goes on."""
