"""What the command lines here have in common: types of their arguments."""

import argparse
import re


def positive(text: str) -> int:
    """A number, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {value})")
    return value


def expression(text: str) -> re.Pattern[str]:
    """A regular expression, compiled."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"not a regular expression: {error} (got {text!r})"
        ) from None
