"""`--isa`: a process limited to one instruction set, ours and PyTorch both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cli, isa
from vmf_kernels import _extension

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not _extension.LOADED, reason="needs the C++ extension")


def test_the_process_starts_anew_with_every_limit(monkeypatch):
    started = []

    def execve(program, arguments, environment):
        started.append((program, arguments, environment))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(SystemExit):
        cli.main(["--isa", "baseline", "--quick", "--only", "none"])
    ((program, arguments, environment),) = started
    assert program == sys.executable
    assert arguments[1:] == ["-m", "bench", "--isa", "baseline", "--quick", "--only", "none"]
    assert environment["VMF_CPU_ISA"] == "baseline"
    assert environment["ATEN_CPU_CAPABILITY"] == "default"
    assert environment["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    assert environment["PATH"] == os.environ["PATH"]


def test_a_limited_process_does_not_start_again(monkeypatch):
    monkeypatch.setenv(isa.NAME, "avx2")
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
    isa.restart_limited("avx2", [])


def test_an_instruction_set_that_the_cpu_lacks_is_refused(monkeypatch, capsys):
    class Extension:
        @staticmethod
        def supported_isas():
            return ["baseline"]

    monkeypatch.setattr(_extension, "_C", Extension)
    with pytest.raises(SystemExit):
        cli.main(["--isa", "avx2"])
    assert "--isa avx2: this CPU runs baseline (got avx2)" in capsys.readouterr().err


def test_ours_and_pytorch_are_limited_and_the_file_says_so(tmp_path: Path):
    only = "dynamic_relu vmf_151m.*4x512x8x4x4 forward$"
    command = [sys.executable, "-m", "bench", "--quick", "--check-only", "--isa", "baseline"]
    subprocess.run(
        [*command, "--only", only, "--out", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = tmp_path.glob("*.csv")
    assert path.name == "ops-cpu-baseline-quick.csv"
    text = path.read_text()
    assert "torch uses DEFAULT" in text and "C++ kernels use baseline" in text
    assert "# instruction set: limited to baseline (VMF_CPU_ISA=baseline " in text
    assert text.count("only the numbers of ours were checked") > 0
