"""What a run leaves to read: a CSV, TensorBoard events, a bar and a line per epoch."""

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from vmf.training.files import atomic_write

# Seconds between two drawings of the curves, which take about half a second each.
_DRAW_EVERY = 30.0

TRAIN_COLUMNS = ("loss", "lr", "grad_norm", "clips_per_s")
VALIDATION_COLUMNS = ("val_loss", "top1", "top5")
COLUMNS = ("step", "epoch", *TRAIN_COLUMNS, *VALIDATION_COLUMNS)


class CsvLog:
    """`metrics.csv`: a row per log line or validation; what a row has no value for stays empty.

    Args:
        path: The file.
        step: Steps already taken: a resumed run drops the rows after it, which it will write again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [row for row in read_log(path) if int(row["step"]) <= step] if step else []
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        atomic_write(path, text.getvalue())

    def write(self, **values: Any) -> None:
        """Appends a row."""
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(values)


def read_log(path: str | Path) -> list[dict[str, str]]:
    """The complete rows of a `metrics.csv`; a missing file has none."""
    path = Path(path)
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    # A row whose end is missing was being written when the machine stopped.
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in csv.DictReader(lines) if row["step"] and None not in row.values()]


class Logs:
    """All the logs of a run; in all but the first process it does nothing.

    Args:
        folder: The run's folder.
        first: Whether this process writes.
        step: Steps already taken.
        total: Steps of the whole run.
        tensorboard: Whether to write events too.

    Attributes:
        last_loss: For the bar to show.
    """

    def __init__(self, folder: Path, first: bool, step: int, total: int, tensorboard: bool) -> None:
        self.folder, self.first = folder, first
        self.last_loss: float | None = None
        self._csv = CsvLog(folder / "metrics.csv", step) if first else None
        self._events = _events(folder / "tensorboard", step) if first and tensorboard else None
        self._bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            # Nothing but a terminal can draw a bar; elsewhere the line per epoch tells enough.
            disable=not first or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._mark = self._drawn = time.monotonic()
        self._spans = {"line": [0, 0.0], "epoch": [0, 0.0]}  # clips, seconds

    def step(self, epoch: int, batch_size: int) -> None:
        """Moves the bar on by one step of `batch_size` clips."""
        now = time.monotonic()
        for span in self._spans.values():
            span[0] += batch_size
            span[1] += now - self._mark
        self._mark = now
        if self._bar.disable:
            return
        rate = self._bar.format_dict["rate"]
        shown = {"clips/s": f"{rate * batch_size:.1f}"} if rate else {}
        if self.last_loss is not None:
            shown["loss"] = f"{self.last_loss:.4f}"
        self._bar.set_description(f"epoch {epoch + 1}", refresh=False)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def skip_time(self) -> None:
        """Leaves the time since the last step (validation, saving) out of clips/s."""
        self._mark = time.monotonic()

    def clips_per_second(self, span: str) -> float:
        """Training speed since it was last asked for, separately for each "line" and "epoch"."""
        clips, seconds = self._spans[span]
        self._spans[span] = [0, 0.0]
        return clips / max(seconds, 1e-9)

    def train(self, step: int, epoch: float, **values: float) -> None:
        """Logs training figures: loss, lr, grad_norm, clips_per_s."""
        self._write(step, epoch, "train", values)

    def validation(self, step: int, epoch: float, **values: float) -> None:
        """Logs validation figures: val_loss, top1, top5."""
        self._write(step, epoch, "val", values)

    def say(self, line: str, file: TextIO | None = None) -> None:
        """Prints a line, above the bar if there is one."""
        if self.first:
            tqdm.write(line, file=file or sys.stdout)
            (file or sys.stdout).flush()

    def draw(self, force: bool) -> None:
        """Draws curves.png anew, if the last drawing is old enough."""
        if self.first and (force or time.monotonic() - self._drawn > _DRAW_EVERY):
            # Imported here: matplotlib takes half a second.
            from vmf.visualize import curves_png

            curves_png(self.folder / "curves.png", self.folder / "metrics.csv")
            self._drawn = time.monotonic()

    def close(self) -> None:
        """Ends the bar and the event file."""
        self._bar.close()
        if self._events is not None:
            self._events.close()

    def _write(self, step: int, epoch: float, group: str, values: dict[str, float]) -> None:
        if self._csv is None:
            return
        self._csv.write(step=step, epoch=f"{epoch:.6g}", **values)
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{group}/{name.removeprefix('val_')}", value, step)
            self._events.flush()


def _events(folder: Path, step: int) -> Any:
    # Imported late: it takes a second.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
