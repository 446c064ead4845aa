"""`vmf`: picks the subcommand, and turns a user's mistakes into one line."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from vmf.cli.errors import UsageError
from vmf.threads import wait_briefly

COMMANDS = {
    "train": "train a network on a folder or list of videos",
    "eval": "accuracy of trained weights on a folder or list of videos",
    "predict": "best classes of video files, and where the tokens look",
    "export": "write a program that runs without this package",
    "bench": "speed of a network, with our kernels and with PyTorch's",
    "models": "table of the networks: clip, parameters, multiply-adds",
}

_HELP = """usage: vmf COMMAND [options]

Video Mobile-Former: train, evaluate and use light video classifiers.

commands:
{commands}

vmf COMMAND --help explains a command and its options. A mistake is answered by one line and exit
code 2; with VMF_TRACEBACK=1 in the environment, by the whole traceback.

example: a folder with train/CLASS/*.mp4 and val/CLASS/*.mp4 becomes a classifier
  vmf train --data clips --epochs 30 --out runs/first
  vmf eval --weights runs/first --data clips
  vmf predict clip.mp4 --weights runs/first
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a `vmf` command.

    Args:
        argv: Arguments after `vmf`; by default those of the process.

    Returns:
        The exit code: 0, 2 for a user's mistake, 128 + n for a signal n.
    """
    wait_briefly()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        listed = "\n".join(f"  {name:8} {what}" for name, what in COMMANDS.items())
        print(_HELP.format(commands=listed), end="")
        return 0
    name = arguments.pop(0)
    if name not in COMMANDS:
        return _complain("vmf", f"no command {name!r} (known: {', '.join(COMMANDS)})")
    return _run(name, arguments)


def _run(name: str, arguments: list[str]) -> int:
    command = f"vmf {name}"
    try:
        module = importlib.import_module(f"vmf.cli.{name}")
        return module.run(arguments) or 0
    except UsageError as error:
        return _complain(command, f"{error} (see {command} --help)")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "vmf", "vmf_kernels"):
            raise
        return _complain(
            command, f"needs the Python package {package}: pip install 'vmf-kernels[vmf]'"
        )
    except KeyboardInterrupt:
        return _complain(command, "stopped", code=128 + signal.SIGINT)
    except BrokenPipeError:
        # What reads our output has gone (`vmf models | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if not _is_users(error) or os.environ.get("VMF_TRACEBACK") == "1":
            raise
        return _complain(command, _word(error))


def _is_users(error: Exception) -> bool:
    """Whether what went wrong is the input or the machine, not this program.

    Everything here checks its input and words what is wrong with it as a ValueError.
    """
    import torch

    return isinstance(error, ValueError | NotImplementedError | OSError | torch.OutOfMemoryError)


def _word(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        what = error.strerror[:1].lower() + error.strerror[1:]
        return f"{where}{what}" + (" (disk full?)" if error.errno == errno.EDQUOT else "")
    return str(error) or type(error).__name__


def _complain(command: str, message: str, code: int = 2) -> int:
    line = " ".join(message.split())
    rank = int(os.environ.get("RANK", 0))
    who = f"{command} [process {rank}]" if rank else command
    print(f"{who}: {line}", file=sys.stderr)
    return code
