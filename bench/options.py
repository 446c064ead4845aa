"""The options of `python -m bench`, and the plan that follows from them."""

import argparse
from pathlib import Path

import torch

from bench import isa
from bench.arguments import expression, positive
from bench.files import write_atomically
from bench.suite import Plan
from bench.timing import CUDA, FULL, QUICK, CudaClock, cpu_clock

SUITES = ("ops", "model", "overhead")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_DTYPES = {"cpu": ["float32"], "cuda": ["float32", "bfloat16"]}

DESCRIPTION = """\
Measures the kernels of this project against PyTorch's own ways, on the layers of real networks.

Every contender of a case runs once in every round, so that a machine that slows down slows all of
them; a speed-up is the median over rounds of the ratio to the best peer in its best layout. Numbers
are checked first: where ours are wrong there is no speed-up, and the exit status is 1."""

EXAMPLES = """\
examples:
  python -m bench --suite ops --device cpu --quick         minutes: every 3x3x3 layer, small batches
  python -m bench --only 'depthwise.*x3d_s'                one op on one network
  python -m bench --only 'k3x3x3.*forward.backward'        one kernel, training only
  python -m bench --only dynamic_relu --peers all          with compiled peers too
  python -m bench --quick --isa avx2                       as on a CPU without AVX-512
  python -m bench --compare main --only 'depthwise.*x3d_s' this tree against another revision
  python -m bench --suite model --out /tmp/results         whole networks; CSV and Markdown as well
  python -m bench --suite overhead                         microseconds that one small call takes
  python -m bench --quick --check-only --dtype bfloat16    are the numbers right? No timing
  python -m bench.everything --quick                       all that is committed, with its pictures

how to read it: bench/README.md"""


def parser() -> argparse.ArgumentParser:
    """All options, each with its help."""
    result = argparse.ArgumentParser(
        prog="python -m bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "--suite",
        choices=SUITES,
        default="ops",
        help="ops: layer by layer (the default); model: inference and training step of networks, "
        "and where their time goes; overhead: microseconds per call of a tiny layer",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where (cpu)")
    add(
        "--quick",
        action="store_true",
        help="minutes instead of 20 to 35: every 3x3x3 depthwise layer and a sample of the others, "
        "large batches shrunk (the tables say which), fewer rounds",
    )
    add(
        "--only",
        type=expression,
        metavar="REGEX",
        default="",
        help="only the cases it is found in: 'op model shape mode', such as "
        "'depthwise_conv3d x3d_s 8x54x13x40x40 k3x3x3 forward+backward'",
    )
    add(
        "--sample",
        type=positive,
        metavar="N",
        help="at most N of the chosen cases of each op, evenly from first to last",
    )
    add(
        "--dtype",
        action="append",
        choices=DTYPES,
        help="may be repeated; float32, on cuda also bfloat16 by default. The model suite runs "
        "16-bit ones as autocast",
    )
    add(
        "--peers",
        choices=("default", "all"),
        default="default",
        help="all: the slow-to-prepare ones too (Inductor, FlexAttention, sum of conv2d)",
    )
    add(
        "--isa",
        choices=isa.LIMITS,
        help="limits our kernels and PyTorch both to this instruction set (CPU), by starting "
        "anew with the variables that ours, ATen, oneDNN, MKL and Inductor read",
    )
    add(
        "--compare",
        metavar="REVISION",
        help="old against new instead of peers: builds that git revision in a temporary folder; "
        "both run in processes of their own that take turns, round by round",
    )
    add(
        "--keep-memory",
        action="store_true",
        help="all contenders run after vmf_kernels.keep_freed_memory(); by default memory is as "
        "the C library sees to it",
    )
    add("--threads", type=positive, metavar="N", help="CPU threads (torch's own choice)")
    add("--check-only", action="store_true", help="check the numbers of ours, time nothing")
    add(
        "--skip-tests",
        action="store_true",
        help="do not run the op's tests first (--quick and --check-only never do); the numbers "
        "of every case are checked in any event",
    )
    add("--out", type=Path, metavar="DIR", help="also write DIR/SUITE-DEVICE….csv and .md")
    return result


def plan(checker: argparse.ArgumentParser, arguments: argparse.Namespace) -> Plan:
    """What the arguments ask for; ends with a line on stderr where they make no sense."""
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        checker.error("--device cuda: torch sees no CUDA device")
    if device == "cuda" and arguments.isa:
        checker.error("--isa: instruction sets are those of CPUs (got --device cuda)")
    if arguments.isa and (reason := isa.refusal(arguments.isa)):
        checker.error(f"--isa {arguments.isa}: {reason}")
    if arguments.compare and arguments.suite != "ops":
        checker.error(f"--compare: compares ops (got --suite {arguments.suite})")
    if arguments.compare and arguments.check_only:
        checker.error("--compare: times; --check-only does not")
    effort = QUICK if arguments.quick else FULL
    if device == "cuda":
        effort = CUDA
        torch.backends.cudnn.benchmark = True  # the peers take the best that cuDNN has
    return Plan(
        device=device,
        dtypes=tuple(DTYPES[d] for d in arguments.dtype or DEFAULT_DTYPES[device]),
        quick=arguments.quick,
        only=arguments.only,
        sample=arguments.sample,
        all_peers=arguments.peers == "all",
        check_only=arguments.check_only,
        effort=effort,
        tests_first=not (arguments.quick or arguments.check_only or arguments.skip_tests),
        clock=CudaClock() if device == "cuda" else cpu_clock,
    )


def stem(arguments: argparse.Namespace) -> str:
    """Name of the files, without what follows the dot: "ops-cpu-avx2-bfloat16-quick"."""
    parts = ["compare" if arguments.compare else arguments.suite, arguments.device]
    if arguments.isa:
        parts.append(arguments.isa)
    if (arguments.dtype or []) not in ([], DEFAULT_DTYPES[arguments.device]):
        parts += arguments.dtype
    if arguments.keep_memory:
        parts.append("memory-kept")
    if arguments.quick:
        parts.append("quick")
    return "-".join(parts)


def check_folder(checker: argparse.ArgumentParser, folder: Path) -> None:
    """Finds out before the minutes of measuring whether the results can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        checker.error(f"--out {folder}: {error.strerror or error}")
