"""Tables for people."""

from collections.abc import Sequence

Rows = list[list[str]]


def markdown_table(header: Sequence[str], rows: Rows) -> str:
    """A table that reads as well unrendered: columns padded, numbers to the right."""
    lines = [list(header), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    right = [all(_numeric(row[i]) for row in rows) for i in range(len(header))]
    rule = [("-" * (w - 1) + ":") if r else "-" * w for w, r in zip(widths, right, strict=True)]

    def join(cells: Sequence[str]) -> str:
        padded = (
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    return "\n".join([join(header), join(rule), *(join(row) for row in rows)])


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _numeric(cell: str) -> bool:
    return cell.strip("*")[:1].isdigit() or cell in ("-", "none", "WRONG")
