"""The gains that explain tells are those of a committed benchmark."""

import json

from bench import gains, machine


def test_they_come_from_committed_results():
    committed = json.loads(gains.TARGET.read_text())
    folder = committed["about"].partition(" from ")[2].split()[0]
    assert gains.TARGET.read_text() == gains.text(machine.ROOT / "bench" / "results" / folder)
    assert all(row["layers"] > 0 for row in committed["rows"])


def test_so_do_those_that_choose_kernels_on_a_gpu():
    path = gains.TARGET.with_name("cuda_gains.json")
    committed = json.loads(path.read_text())
    folder = committed["about"].partition("bench/results/")[2].split("`")[0]
    assert path.read_text() == gains.cuda_text(machine.ROOT / "bench" / "results" / folder)
    for row in committed["rows"]:
        copied = row["layout"] == "channels_last_3d" and row["multiplier"] > 1
        assert bool(row.get("estimated")) == copied


def test_kind_of_a_shape():
    assert gains.kind("8x54x13x40x40 k3x3x3 s1x2x2 m2") == "strided"
    assert gains.kind("8x24x13x80x80 k5x1x1") == "along T"
