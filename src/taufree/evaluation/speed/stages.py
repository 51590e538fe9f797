"""Where an XC build spends its time: its stack every millisecond, no timers in the code itself."""

from __future__ import annotations

import linecache
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import taufree

PACKAGE = str(Path(taufree.__file__).parent)

STAGES: dict[str, dict[str, str]] = {
    # function: {text in the line it is at ("": any): stage}; the innermost that is listed counts
    "blocks": {"": "AO values"},
    "ao_blocks": {"": "AO values"},
    "geometry": {"": "neighbour lists, features"},
    "_density": {"": "density"},
    "density": {"": "density"},
    "libxc_eff": {"": "correlation"},
    "potential": {
        "to_tokens": "tokens read the density",
        "answers": "token network",
        "scatter(z": "points read the tokens",
        "averaged_block": "averages",
        "at_points": "experts",
        "grad(energy": "experts, backward",
        "gather(found": "points to tokens, backward",
        "": "local algebra",
    },
    "_by_points": {"": "spread to the points"},
    "backward": {"average_backward": "averages, backward"},
    "__call__": {"": "copies"},
    "_potential_matrix": {"": "matrix contraction"},
    "potential_matrix": {"": "matrix contraction"},
}
"""Stages of `taufree.functional.Functional.potential` and of its host, PySCF."""


BUSIEST = 12
"""Lines that are named."""


class StageSampler:
    """Adds up, over a ``with`` block, how long its thread is in which stage and at which line.

    A sample counts for the time since the last one: while compiled code keeps Python's lock there
    are none, and the next, at the line that called it, makes up for them. Lines are the innermost
    of this package, so they point at the code to look at.
    """

    def __init__(self, interval: float = 1e-3) -> None:
        self.stages: dict[str, float] = {}
        self.lines: dict[str, float] = {}
        self._interval = interval
        self._stop = threading.Event()

    def __enter__(self) -> StageSampler:
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def shares(self) -> dict[str, float]:
        """Fraction of the time in each stage, largest first."""
        return _shares(self.stages)

    def hot_lines(self) -> dict[str, float]:
        """Fraction of the time at each of the busiest lines."""
        return dict(list(_shares(self.lines).items())[:BUSIEST])

    def _watch(self) -> None:
        last = time.perf_counter()
        while not self._stop.wait(self._interval):
            frame = sys._current_frames().get(self._watched)
            now = time.perf_counter()
            own = [f for f in _outward(frame) if f.f_code.co_filename.startswith(PACKAGE)]
            if own:
                line = f"{Path(own[0].f_code.co_filename).name}: {_line(own[0])}"
                self.lines[line] = self.lines.get(line, 0.0) + now - last
                stage = _stage(own)
                self.stages[stage] = self.stages.get(stage, 0.0) + now - last
            last = now


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values()) or 1.0
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    return {name: s / total for name, s in ranked}


def _outward(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _line(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def _stage(frames: list[FrameType]) -> str:
    for frame in frames:
        for text, stage in STAGES.get(frame.f_code.co_name, {}).items():
            if text in _line(frame):
                return stage
    return "elsewhere"
