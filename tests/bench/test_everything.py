"""The one command that makes all that is committed."""

from pathlib import Path

import pytest

from bench import cli, draw, everything, options, readme
from bench.everything import Step, run, steps


def test_every_command_is_accepted_and_writes_a_file_of_its_own(tmp_path: Path):
    for quick in (False, True):
        stems = []
        for step in steps(tmp_path, quick, [None, "avx2"]):
            if step.command[0] == "bench":
                arguments = options.parser().parse_args(step.command[1:])
                assert arguments.quick == quick and arguments.out == tmp_path
                stems.append(options.stem(arguments).removesuffix("-quick"))
        assert stems == [
            *("ops-cpu", "ops-cpu-bfloat16-float16", "overhead-cpu"),
            *("ops-cpu-avx2", "ops-cpu-avx2-bfloat16-float16", "overhead-cpu-avx2"),
            *("model-cpu", "model-cpu-memory-kept"),
        ]


def test_the_readme_shows_what_is_written(tmp_path: Path):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    for step in steps(tmp_path, False, [None, "avx2"]):
        if step.command[0] == "bench" and step.title != "call overhead, avx2":
            stem = options.stem(options.parser().parse_args(step.command[1:]))
            assert f"/{stem} " in text, stem


def test_quick_is_feasible():
    minutes = sum(step.minutes for step in steps(Path("out"), True, [None, "avx2"]))
    assert minutes < 31


def test_all_steps_run_whatever_fails_and_the_rest_is_estimated(capsys):
    minutes = iter([0, 0, 4, 4.5, 5])  # the first step takes twice as long as it was said to
    todo = [Step("one", ("a",), 2), Step("two", ("b", "--c"), 3), Step("three", ("d",), 1)]
    started = []

    def start(step: Step) -> int:
        started.append(step.title)
        return int(step.title == "two")

    assert run(todo, start, lambda: 60 * next(minutes)) == 1
    assert started == ["one", "two", "three"]
    told = capsys.readouterr().err
    assert "[1/3] one: 0 min spent, about 6 min left" in told
    assert "[2/3] two: 4 min spent, about 8 min left" in told
    assert "2 of 3 steps" in told and "FAILED: two: python -m b --c" in told


def test_dry_run_prints_and_only_selects(capsys):
    assert everything.main(["--dry-run", "--quick", "--only", "networks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# networks, about") and len(lines) == 4
    with pytest.raises(SystemExit):
        everything.main(["--only", "no such step"])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (cli, "bench"),
        (draw, "bench.draw"),
        (readme, "bench.readme"),
        (everything, "bench.everything"),
    ],
)
def test_help_of_every_command_teaches(module, name: str, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: python -m {name} " in told and len(told) > 400
