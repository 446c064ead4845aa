"""Options from dataclasses and functions, and their mistakes in one line."""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jsonargparse

from vmf.cli.errors import UsageError


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Description and examples as they are written; each option with its default, if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text} (required)"
        unset = action.default is None or action.default is False
        if unset or action.default in ({}, (), argparse.SUPPRESS) or not action.option_strings:
            return text
        return f"{text} (default: %(default)s)"


class Parser(jsonargparse.ArgumentParser):
    """A parser of a subcommand.

    Options are spelled with dashes, `--batch-size`, and YAML keys as Python has them,
    `batch_size`; either spelling is accepted on the command line. A yes-or-no option alone is yes.

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
            epilog=f"examples:\n{example}",
            formatter_class=_Formatter,
            exit_on_error=False,
        )

    def add_function(self, function: Callable, **groups: Sequence[str]) -> None:
        """Adds parameters of a function, documented by its docstring, under titles.

        Args:
            function: What the command calls.
            **groups: Title and the names of the parameters under it.
        """
        names = inspect.signature(function).parameters
        for title, chosen in groups.items():
            self.add_function_arguments(function, skip={n for n in names if n not in chosen})
            assert self.groups is not None
            self.groups.pop(function.__name__).title = title

    def parse(self, arguments: Sequence[str], defaults: bool = True) -> dict[str, Any]:
        """The options by name, dataclasses built.

        Args:
            arguments: After the name of the command.
            defaults: False gives only what the user set.

        Raises:
            UsageError: What is wrong, in one line.
        """
        try:
            parsed = self.parse_args(self._plain(arguments), defaults=defaults)
            values = self.instantiate(parsed) if defaults else parsed
        except (argparse.ArgumentError, ValueError, TypeError) as error:
            raise UsageError(_readable(str(error))) from None
        return {k: v for k, v in values.items() if k not in ("config", "print_config")}

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The help text, with dashes in the names of options."""
        text = super().format_help(formatter)
        return re.sub(r"--[a-z][\w.]*", lambda m: m[0].replace("_", "-"), text)

    def _plain(self, arguments: Sequence[str]) -> list[str]:
        """Underscores in names, and `true` after a yes-or-no option that has no value."""
        booleans = {
            name
            for action in self._actions
            if getattr(action, "_typehint", None) is bool
            for name in action.option_strings
        }
        plain = []
        for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
            if argument.startswith("--"):
                name, equals, value = argument.partition("=")
                argument = f"--{name[2:].replace('-', '_')}{equals}{value}"
            if argument in booleans and following.lower() not in ("true", "false", "yes", "no"):
                argument += "=true"
            plain.append(argument)
        return plain


def _readable(message: str) -> str:
    message = " ".join(message.split())
    found = re.match(r'Parser key "([\w.]+)": (.*)', message)
    if found:
        message = f"{found[1]}: {found[2]}"
    return message.replace("typing.Literal", "one of ").replace("<class '", "").replace("'>", "")
