"""What can be wrong with a command line."""


class UsageError(ValueError):
    """The command line or a config file is not what the command takes."""
