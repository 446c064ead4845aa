"""Options from dataclasses and functions, and their mistakes in one line."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

import jsonargparse


class UsageError(ValueError):
    """The command line or a config file is not what the command takes."""


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Types and defaults with each option; description and examples as they are written."""


class Parser(jsonargparse.ArgumentParser):
    """A parser of a subcommand.

    Options are spelled with dashes, `--batch-size`, and YAML keys as Python has them,
    `batch_size`; either spelling is accepted on the command line.

    Args:
        command: Name of the subcommand.
        description: What it does, one paragraph.
        example: Command lines to end the help with.
    """

    def __init__(self, command: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"vmf {command}",
            usage=f"vmf {command} [options]",
            description=description,
            epilog=f"example:\n{example}",
            formatter_class=_Formatter,
            exit_on_error=False,
        )

    def parse(self, arguments: Sequence[str], defaults: bool = True) -> dict[str, Any]:
        """The options by name, dataclasses built.

        Args:
            arguments: After the name of the command.
            defaults: False gives only what the user set.

        Raises:
            UsageError: What is wrong, in one line.
        """
        try:
            parsed = self.parse_args([_underscored(a) for a in arguments], defaults=defaults)
            values = self.instantiate(parsed) if defaults else parsed
        except (argparse.ArgumentError, ValueError, TypeError) as error:
            raise UsageError(_readable(str(error))) from None
        return {k: v for k, v in values.items() if k not in ("config", "print_config")}

    def format_help(self) -> str:
        """The help text, with dashes in the names of options."""
        return re.sub(r"--[a-z][\w.]*", lambda m: m[0].replace("_", "-"), super().format_help())


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _readable(message: str) -> str:
    message = " ".join(message.split())
    found = re.match(r'Parser key "([\w.]+)": (.*)', message)
    if found:
        message = f"{found[1]}: {found[2]}"
    return message.replace("typing.Literal", "one of ").replace("<class '", "").replace("'>", "")
