"""The gains that explain tells are those of a committed benchmark."""

import json

from bench import gains, machine


def test_they_come_from_committed_results():
    committed = json.loads(gains.TARGET.read_text())
    folder = committed["about"].partition(" from ")[2].split()[0]
    assert gains.TARGET.read_text() == gains.text(machine.ROOT / "bench" / "results" / folder)
    assert all(row["layers"] > 0 for row in committed["rows"])


def test_kind_of_a_shape():
    assert gains.kind("8x54x13x40x40 k3x3x3 s1x2x2 m2") == "strided"
    assert gains.kind("8x24x13x80x80 k5x1x1") == "along T"
