"""`vmf bench`."""

from collections.abc import Sequence

from vmf.cli.parsing import Parser
from vmf.training.benchmark import BenchResult, bench
from vmf_kernels import keep_freed_memory

_DESCRIPTION = """\
Time a network on random clips: inference, and a training step (forward, backward, AdamW), with
our kernels and with PyTorch's own operations in turn; the medians are told."""

_EXAMPLE = """\
  vmf bench --model vmf_1g
  vmf bench --model vmf_tiny --batch-size 16 --rounds 20
  vmf bench --model vmf_151m --frames 8 --size 112 --device cuda --precision bf16"""


def run(arguments: Sequence[str]) -> int:
    """Runs `vmf bench`; returns the exit code."""
    keep_freed_memory()
    parser = Parser("bench", _DESCRIPTION, _EXAMPLE)
    parser.add_function(bench, Network=["model", "frames", "size", "num_classes"])
    parser.add_function(bench, Measurement=["batch_size", "rounds", "device", "precision"])
    _tell(bench(**parser.parse(arguments)))
    return 0


def _tell(result: BenchResult) -> None:
    frames, size = result.clip
    threads = f", {result.threads} threads" if result.device == "cpu" else ""
    print(
        f"{result.model}: {result.params / 1e6:.2f}M parameters, {result.macs / 1e9:.3f} GMACs a "
        f"clip of {frames} x {size} x {size}; batches of {result.batch_size} in "
        f"{result.precision} on {result.device}{threads}"
    )
    print(f"{'':12}{'':9}{'ms':>10}{'clips/s':>10}{'speed-up':>10}")
    reference = {t.phase: t.milliseconds for t in result.timings if t.backend == "PyTorch"}
    for t in result.timings:
        ratio = f"{reference[t.phase] / t.milliseconds:.2f}x"
        print(
            f"{t.phase:12}{t.backend:9}{t.milliseconds:10.1f}{t.clips_per_second:10.1f}{ratio:>10}"
        )
