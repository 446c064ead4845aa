"""Tables and files from made-up measurements."""

import csv
from pathlib import Path

import pytest

from bench.cases import ReluCase
from bench.comparison import Comparison
from bench.files import write_atomically
from bench.machine import Roofline
from bench.markdown import markdown_table
from bench.op import Traffic
from bench.report import op_report
from bench.results import csv_text
from bench.timing import Times

ROOFLINE = Roofline(1000, cache_bandwidth=1e9, memory_bandwidth=1e8, flops=1e9)
LAST, FIRST = "channels_last_3d", "contiguous"


def comparison(**changes) -> Comparison:
    """Ours takes 1 ms channels-last and 2 ms contiguous, the peer 3 and 12."""
    seconds = {
        ("ours", FIRST): [2e-3] * 3,
        ("ours", LAST): [1e-3] * 3,
        ("eager", FIRST): [12e-3] * 2,
        ("eager", LAST): [2e-3, 3e-3, 4e-3],
    }
    fields = {
        "op": "dynamic_relu",
        "case": ReluCase("net", 2, 3, 4, (8, 2, 2)),
        "full_batch": 2,
        "mode": "forward",
        "dtype": "float32",
        "backend": "cpu",
        "times": Times(seconds),
        "reasons": {("inductor", FIRST): "only with --peers all"},
        "traffic": Traffic(500, 100_000),
    }
    return Comparison(**{**fields, **changes})


def test_speedup_is_over_the_best_peer_in_its_best_layout():
    result = comparison()
    assert result.best_peer() == ("eager", LAST)
    assert result.speedup(("ours", LAST))[0] == pytest.approx(3.0)
    assert result.speedup(("ours", FIRST))[0] == pytest.approx(1.5)
    assert result.speedup(("ours", FIRST), same_layout=True)[0] == pytest.approx(6.0)
    assert result.best_speedup() == pytest.approx(3.0)
    # 100 000 operations at 1e9 a second bind, not 500 bytes: 0.1 ms.
    assert result.roofline_share(("ours", LAST), ROOFLINE) == pytest.approx(0.1)


def test_report_tells_shape_times_speedup_and_who_did_not_run():
    text = op_report("dynamic_relu", [comparison()], ROOFLINE)
    row = next(line for line in text.splitlines() if LAST in line and "net" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["net", "2x4x8x2x2", "cpu", LAST, "1.00 (1.00-1.00)"]
    assert cells[-5:] == ["3.00", "2.40-3.60", "3.00", "0.0", "10"]
    assert "inductor (contiguous), 1 of 1 rows: only with --peers all" in text
    assert "Shrunk" not in text and "reference" not in text and "WRONG" not in text


def test_report_tells_what_kernels_request_and_execute_where_it_was_counted():
    counted = comparison(backend="triton", kernel_traffic={LAST: Traffic(2_000_000, 3_000_000)})
    text = op_report("dynamic_relu", [counted, comparison()], ROOFLINE)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = header.index("MB")
    assert header[start:] == ["MB", "MB requested", "MFLOP", "MFLOP executed", "% of roofline"]
    found = {(row[2], row[3]): row[start:-1] for row in rows if row[0] == "net"}
    assert found["triton", LAST] == ["0.0", "2.0", "0", "3"]
    assert found["triton", FIRST] == found["cpu", LAST] == ["0.0", "-", "0", "-"]
    wrong = comparison(kernel_traffic={LAST: Traffic(1, 1)}, reasons={("ours", LAST): "off"})
    text = op_report("dynamic_relu", [wrong], ROOFLINE)
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| ")}
    assert "WRONG" in text and len(widths) == 1


def test_report_names_what_was_shrunk_and_what_is_only_the_reference():
    result = comparison(full_batch=8, backend="reference")
    text = op_report("dynamic_relu", [result], ROOFLINE)
    assert "2x4x8x2x2 (of 8)" in text
    assert "in 1 of 1 rows the batch is smaller" in text
    assert "has no kernel" in text


def test_means_name_the_worst_case_and_every_slower_one():
    slow = Times({("ours", LAST): [4e-3], ("eager", LAST): [1e-3]})
    other = ReluCase("other", 1, 1, 4, (8, 9, 9))
    results = [comparison(), comparison(case=other, full_batch=1, times=slow)]
    text = op_report("dynamic_relu", results, ROOFLINE)
    row = next(line for line in text.splitlines() if line.startswith("| all cases"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # sqrt(3 / 4), and with weights 3 and 1: (27 / 4) ** (1 / 4)
    assert cells[1:4] == ["2", "0.87", "1.61"]
    assert cells[6:] == ["0.25", "other 1x4x8x9x9", "1"]
    assert "- 0.25 other 1x4x8x9x9" in text


def test_wrong_numbers_get_no_speedup():
    reasons = {("ours", LAST): "the output is off by 3e-01"}
    result = comparison(reasons=reasons)
    assert result.wrong and result.best_speedup() is None
    assert result.speedup(("ours", FIRST)) is None
    text = op_report("dynamic_relu", [result], ROOFLINE)
    row = next(line for line in text.splitlines() if line.startswith("| net"))
    assert "WRONG" in row and "none" in row
    assert f"- net 2x4x8x2x2 forward float32 {LAST}: the output is off by 3e-01" in text
    assert "| all cases" not in text


def test_csv_has_a_line_per_contender_and_the_machine_above():
    text = csv_text([comparison()], {"cpu": "Z80"}, ROOFLINE)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[0] == "# cpu: Z80" and comments[1].startswith("# roofline: copy")
    body = [line for line in text.splitlines() if not line.startswith("#")]
    rows = {(row["contender"], row["layout"]): row for row in csv.DictReader(body)}
    assert len(rows) == 5
    assert rows["ours", LAST]["speedup"] == "3"
    assert rows["ours", FIRST]["same_layout_speedup"] == "6"
    assert rows["eager", FIRST]["ms_median"] == "12" and rows["eager", FIRST]["rounds"] == "2"
    assert rows["eager", LAST]["speedup"] == "" and rows["eager", LAST]["bytes"] == "500"
    assert rows["inductor", FIRST]["status"] == "only with --peers all"


def test_table_columns_align():
    lines = markdown_table(["name", "n"], [["a", "1"], ["bcdef", "100"]]).splitlines()
    assert lines == ["| name  |   n |", "| ----- | --: |", "| a     |   1 |", "| bcdef | 100 |"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch):
    path = tmp_path / "new" / "table.md"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
