"""Ctrl-C and SIGTERM that wait for the step to end, so that a run stops where it can go on."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from vmf.training.distributed import Ranks, is_first_process


class Stopped(Exception):
    """A run ended early, on request, with its state saved.

    Attributes:
        signal: The signal's number.
        folder: The run's folder, to resume from.
    """

    def __init__(self, signal_number: int, folder: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; saved in {folder}")
        self.signal, self.folder = signal_number, folder


class StopRequest:
    """Notes a SIGINT or SIGTERM within a `with` block; another one, later, acts at once.

    Attributes:
        signal: The signal that came to this process, or None.
        agreed: Whether all processes know of a signal to one of them.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.agreed = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread alone and lets no other install handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def urgent(self, ranks: Ranks) -> bool:
        """Whether a signal came that no other process has to hear of first."""
        return self.signal is not None and ranks.world == 1

    def _note(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes on the Ctrl-C that the terminal has sent to all processes anyway: what
        # comes in the same second is the same wish.
        if self.signal is not None and time.monotonic() - self._since > 1.0:
            raise KeyboardInterrupt
        if self.signal is None and is_first_process():
            # Not print(): a handler may run in the midst of one.
            os.write(2, b"\nstopping at the end of this step; once more stops at once\n")
        self.signal = number
        self._since = time.monotonic()
