"""The tables of the READMEs, and the pictures, come from the committed results."""

import struct
from pathlib import Path

import pytest

from bench import draw, machine, overhead, readme
from bench.breakdown import DEPTHWISE
from bench.op import FORWARD, RECORDED
from bench.results import COLUMNS, csv_text, layers, table_text
from bench.targets import OVERHEAD
from bench.timing import Times
from tests.bench.test_results import LAST, ROOFLINE, TRAINING, comparison

FACTS = {
    "revision": "abc",
    "cpu": "Z80, 2 CPUs, torch uses AVX2",
    "threads": "2",
    "kernels": "vmf_kernels 1, C++ kernels use avx2",
    "versions": "python 3.11.7, torch 2.13.0+cpu, triton 3",
}


def test_the_committed_readmes_agree_with_the_committed_results(capsys):
    assert readme.main(["--check"]) == 0, capsys.readouterr().err
    assert readme.REGION.search((machine.ROOT / "README.md").read_text())


def regions(kind: str, *stems: str) -> str:
    return f"before\n<!-- bench: {kind} {' '.join(stems)} -->\nold\n<!-- /bench -->\nafter"


def body(kind: str, root: Path, *stems: str) -> str:
    path = root / "docs" / "README.md"
    text = readme.rewritten(regions(kind, *stems), path, root)
    assert text.startswith("before\n<!-- bench: ") and text.endswith("\n<!-- /bench -->\nafter")
    assert readme.rewritten(text, path, root) == text
    return text.split("-->\n")[1].rpartition("\n<!--")[0]


def cells(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_a_summary_has_the_kinds_that_targets_are_set_for(tmp_path: Path):
    some = [comparison(4.0), comparison(0.25, kernel=5), comparison(9.0, mode=TRAINING)]
    (tmp_path / "ops-cpu-quick.csv").write_text(csv_text(some, FACTS, ROOFLINE))
    (tmp_path / "ops-cpu-quick.md").touch()
    sixteen = csv_text([comparison(2.0, dtype="float16")], FACTS, ROOFLINE)
    (tmp_path / "ops-cpu-float16.csv").write_text(sixteen)
    text = body("summary", tmp_path, "ops-cpu", "ops-cpu-float16")
    assert text.startswith(
        "Z80, 2 threads, AVX2, torch 2.13.0; float32, quick: revision abc, [every row](../ops-"
    )
    assert "ops-cpu-quick.md); float16: revision abc." in text.splitlines()[0]
    table = cells(text)
    assert table["`depthwise_conv3d`"] == [
        *("2", "**1.00×**", "0.25×", "1"),
        *("**9.00×**", "9.00×", "0"),
    ]
    assert table["… a side of 5 or more"][:4] == ["1", "**0.25×**", "0.25×", "1"]
    # Contiguous against contiguous: 16, 1 and 36.
    assert table["… both contiguous"] == ["1", "**8.00×**", "8.00×", "0", "-", "-", "-"]
    assert table["`depthwise_conv3d`, float16"][1] == "**2.00×**"
    assert "… 3x3x3" not in table


def test_a_full_run_goes_before_a_quick_one(tmp_path: Path):
    for name, speedup in (("ops-cpu-quick.csv", 2.0), ("ops-cpu.csv", 3.0)):
        (tmp_path / name).write_text(csv_text([comparison(speedup)], FACTS, ROOFLINE))
    assert "**3.00×**" in body("summary", tmp_path, "ops-cpu")
    assert "3.00" in cells(body("targets", tmp_path, "ops-cpu"))["depthwise_conv3d: all"]


def test_what_was_not_measured_says_so(tmp_path: Path):
    for kind in readme.KINDS:
        assert body(kind, tmp_path, "none") == readme.ABSENT


def test_an_unknown_region_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a region is one of .* \(got 'sumary'\)"):
        body("sumary", tmp_path, "ops-cpu")


def test_networks_stand_beside_their_best_peer(tmp_path: Path):
    peak = {("ours", LAST): 5_000_000, ("eager", LAST): 9_000_000}
    some = comparison(2.0, mode="inference", op="model", peak_bytes=peak)
    (tmp_path / "model-cpu.csv").write_text(csv_text([some], FACTS, ROOFLINE))
    table = cells(body("model", tmp_path, "model-cpu"))
    assert table["net 2x4x8x9x9 k3x3x3"] == [
        *("float32", "inference", "1", "5", "eager channels_last_3d", "2", "9", "**2.00×**")
    ]


def test_parts_come_from_their_own_file(tmp_path: Path):
    row = {"model": "net", "clips": "1x3", "phase": "inference", "dtype": "float32"}
    row |= {"contender": "ours", "layout": LAST, "part": DEPTHWISE, "direction": "forward"}
    rows = [{**row, "ms": "2.0"}]
    text = table_text(rows, list(rows[0]), FACTS)
    (tmp_path / "model-cpu-breakdown.csv").write_text(text)
    assert cells(body("breakdown", tmp_path, "model-cpu"))["net 1x3"][2:] == [
        DEPTHWISE,
        "2.0",
        "100",
    ]


def test_overhead_is_told_in_microseconds(tmp_path: Path):
    some = [
        comparison(2.0, mode=mode, times=Times({("ours", LAST): [7e-6], ("eager", LAST): [14e-6]}))
        for mode in (FORWARD, RECORDED)
    ]
    (tmp_path / "overhead-cpu.csv").write_text(csv_text(some, FACTS, ROOFLINE))
    text = body("overhead", tmp_path, "overhead-cpu")
    assert " 7.0 |" in text and text.count("**not met**") == 1 and text.count("| met") == 1
    assert (
        overhead.table(
            layers(
                [
                    dict.fromkeys(COLUMNS, "")
                    | {"shape": "1x1", "status": "no", "batch_in_list": "1", "count": "1"}
                ]
            ),
            OVERHEAD,
        ).count("none")
        == 1
    )


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_pictures_are_drawn_shown_and_the_same_each_time(tmp_path: Path, capsys):
    some = [comparison(s, kernel=k) for s in (0.5, 2.0) for k in (3, 5)]
    some += [comparison(9.0, mode=TRAINING), comparison(3.0, op="dynamic_relu")]
    (tmp_path / "ops-cpu.csv").write_text(csv_text(some, FACTS, ROOFLINE))
    assert draw.main([str(tmp_path)]) == 0
    names = ["ops-cpu-roofline.png", "ops-cpu-speedup.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    before = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        width, height = png_size(tmp_path / name)
        assert width == draw.WIDTH * draw.DPI and 400 < height < 1000
    draw.main([str(tmp_path)])
    assert [(tmp_path / name).read_bytes() for name in names] == before
    shown = body("pictures", tmp_path, "ops-cpu")
    assert "![Speed-up of every layer](../ops-cpu-speedup.png)" in shown


def test_nothing_to_draw_is_one_line(tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        draw.main([str(tmp_path)])
    assert "there is no ops-*.csv" in capsys.readouterr().err


def test_wrong_layers_and_gpus_without_a_cache_are_drawn_too(tmp_path: Path):
    wrong = comparison(3.0, times=Times(), reasons={("ours", LAST): "off by 1e-1"})
    gpu = type(ROOFLINE)(0, 0.0, 3e12, 6e13)
    path = tmp_path / "ops-cuda.csv"
    path.write_text(csv_text([wrong, comparison(2.0)], FACTS, gpu))
    assert len(draw.draw(path)) == 2
    path.write_text(csv_text([wrong], FACTS, gpu))
    assert draw.draw(path) == []
