"""`--compare`: another revision in a process of its own, and nothing left of it afterwards."""

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench import options
from bench.revisions import session, tree, worker
from bench.revisions.tree import CompareError
from bench.timing import Effort
from vmf_kernels import _extension

ROOT = Path(__file__).parents[2]
ONLY = "dynamic_relu vmf_151m.*4x512x8x4x4 forward$"
built = pytest.mark.skipif(not _extension.LOADED, reason="needs the C++ extension")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """A repository with the kernels of this tree, in two commits that say another version."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = tmp_path / "repository"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "vmf_kernels", folder / "vmf_kernels", ignore=ignore)
    git(tmp_path, "init", "--quiet", "-b", "main", str(folder))
    for version in ("7.0", "8.0"):
        (folder / "vmf_kernels/version.py").write_text(f'__version__ = "{version}"\n')
        git(folder, "add", "-A")
        git(folder, "commit", "--quiet", "-m", version)
    return folder


def copy_extension(folder: Path) -> None:
    """Stands in for the build, which takes minutes."""
    for path in (ROOT / "vmf_kernels").glob("_C*.so"):
        shutil.copy(path, folder / "vmf_kernels")


def nothing_is_left(repository: Path) -> bool:
    worktrees = git(repository, "worktree", "list", "--porcelain").count("worktree ")
    return worktrees == 1 and not list((repository.parent / "temporary").iterdir())


def run(repository: Path, revision: str, files: Path | None, told: list[str]) -> int:
    argv = ["--quick", "--only", ONLY, "--compare", revision]
    parser = options.parser()
    plan = options.plan(parser, parser.parse_args(argv))
    return session.run(revision, argv, plan, files, told.append, repository, copy_extension)


@built
def test_both_revisions_run_and_nothing_is_left(repository: Path, capsys, monkeypatch):
    monkeypatch.setattr(options, "QUICK", Effort(0.0, 2, 2, sample_seconds=0.0))
    told: list[str] = []
    files = repository.parent / "results" / "compare-cpu"
    assert run(repository, "HEAD~1", files, told) == 0
    text = capsys.readouterr().out
    assert "- old: HEAD~1 (" in text and "- old kernels: vmf_kernels 7.0, C++" in text
    assert "- new kernels: vmf_kernels" in text
    rows = [line for line in text.splitlines() if line.startswith("| vmf_151m")]
    assert len(rows) == 2 and "WRONG" not in text
    means = [line for line in text.splitlines() if line.startswith("| dynamic_relu")]
    assert len(means) == 2 and all("| forward |" in line for line in means)
    csv = files.with_name("compare-cpu.csv").read_text()
    assert csv.count("\ndynamic_relu,") == 2 and csv.count(",ran,") == 2
    assert nothing_is_left(repository)


def test_a_revision_that_is_not_there_is_one_line(repository: Path):
    told: list[str] = []
    assert run(repository, "no-such-branch", None, told) == 1
    assert told == ["--compare: git knows no such revision here (got 'no-such-branch')"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, CompareError("it fails"), SystemExit])
def test_nothing_is_left_after_an_interrupted_build(repository: Path, error):
    commit = tree.commit_of(repository, "main")

    def build(folder: Path) -> None:
        assert (folder / "vmf_kernels/__init__.py").exists()
        assert not nothing_is_left(repository)
        raise error

    with pytest.raises(BaseException) as raised, tree.checked_out(repository, commit, build):
        pass
    assert isinstance(raised.value, error if isinstance(error, type) else type(error))
    assert nothing_is_left(repository)


def test_termination_cleans_up_too(repository: Path):
    before = signal.getsignal(signal.SIGTERM)
    commit = tree.commit_of(repository, "main")

    def build(folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(SystemExit), tree.checked_out(repository, commit, build):
        pass
    assert nothing_is_left(repository)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_build_without_an_extension_says_what_the_build_said(tmp_path: Path):
    (tmp_path / "vmf_kernels").mkdir()
    (tmp_path / "setup.py").write_text("print('no compiler here')")
    with pytest.raises(CompareError, match="leaves no extension:\nno compiler here"):
        tree.build_extension(tmp_path)


def test_a_build_that_is_interrupted_ends_its_compilers(tmp_path: Path, monkeypatch):
    mark = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {mark}; wait"
    communicate = subprocess.Popen.communicate

    def interrupted(self, *args, **kwargs):
        while not (mark.exists() and mark.read_text().strip()):
            time.sleep(0.01)
        monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tree.run_group(["sh", "-c", script], tmp_path)
    compiler = Path("/proc") / mark.read_text().strip()
    for _ in range(500):  # until the system has taken it away
        if not compiler.exists() or "zombie" in (compiler / "status").read_text():
            return
        time.sleep(0.01)
    pytest.fail("the compiler still runs")


def test_sources_newer_than_the_extension_are_noticed(tmp_path: Path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "vmf_kernels").mkdir()
    source = tmp_path / "csrc/op.cpp"
    source.touch()
    assert tree.stale(tmp_path)
    extension = tmp_path / "vmf_kernels/_C.so"
    extension.touch()
    os.utime(source, (1, 1))
    assert not tree.stale(tmp_path)
    os.utime(extension, (0, 0))
    assert tree.stale(tmp_path)


def test_a_process_that_ends_is_reported(tmp_path: Path):
    (tmp_path / "bench/revisions").mkdir(parents=True)
    (tmp_path / "bench/revisions/worker.py").write_text("raise SystemExit(3)")
    for folder in ("bench", "bench/revisions"):
        (tmp_path / folder / "__init__.py").touch()
    side = session.Side("old", tmp_path, [])
    with pytest.raises(CompareError, match="old revision ended with status 3"):
        side.begin(tmp_path)
    side.end()


def server(**changes) -> worker.Server:
    parser = options.parser()
    plan = options.plan(parser, parser.parse_args(["--quick", "--only", ONLY]))
    bench = dataclasses.replace(worker.BENCHES["dynamic_relu"], **changes)
    return worker.Server(plan, worker.suite.tasks([bench], plan))


def test_the_worker_answers_line_by_line():
    replies: list[dict] = []
    requests = ['{"open": 0}', '{"time": "contiguous", "calls": 2}']
    worker.serve(requests, replies.append, server())
    assert replies[0]["cases"] == 1
    assert replies[1]["wrong"] == {"contiguous": None, "channels_last_3d": None}
    assert replies[2]["seconds"] > 0


def test_wrong_numbers_are_told_and_not_timed(capsys, monkeypatch):
    def dynamic_relu(*inputs):
        return 2 * worker.vmf_kernels.dynamic_relu(*inputs)

    class Process:
        name = "new"

        def ask(self, **message):
            return wrong.answer(message)

    wrong = server(function=dynamic_relu)
    (outcome,) = session.compare(wrong.todo, {"new": Process()}, wrong.plan, lambda line: None)
    assert not outcome.times.seconds
    rows = session.rows_of(outcome)
    assert [row["speedup"] for row in rows] == ["", ""]
    assert all(row["status"].startswith("new: the output is off by 1.0e+00") for row in rows)
    assert session.report([outcome], {}).count("WRONG: new: the output is off") == 2
