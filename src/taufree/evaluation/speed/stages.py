"""Where an XC build spends its time: its stack every millisecond, no timers in the code itself."""

from __future__ import annotations

import collections
import linecache
import sys
import threading
from pathlib import Path
from types import FrameType

import taufree

PACKAGE = str(Path(taufree.__file__).parent)

STAGES: dict[str, dict[str, str]] = {
    # function: {text in the line it is at ("": any): stage}; the innermost that is listed counts
    "ao_blocks": {"": "AO values"},
    "geometry": {"": "neighbour lists, features"},
    "_density": {"": "density"},
    "libxc_eff": {"": "correlation"},
    "features": {"": "features anew"},
    "potential": {
        "to_tokens": "tokens read the density",
        "answers": "token network",
        "scatter(z": "points read the tokens",
        "head": "experts",
        "grad(weights": "experts, backward",
        "gather(d_f": "points to tokens, backward",
        "": "spread to the points, local algebra",
    },
    "_exchange_correlation": {"": "copies"},
    "_potential_matrix": {"": "matrix contraction"},
}
"""Stages of `taufree.functional.Functional.potential` and of its host, PySCF."""


class StageSampler:
    """Counts, over a ``with`` block, in which stage and at which line its thread is.

    Line counts name the innermost line of this package, so they point at the code to look at.
    """

    def __init__(self, interval: float = 1e-3) -> None:
        self.stages: collections.Counter[str] = collections.Counter()
        self.lines: collections.Counter[str] = collections.Counter()
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
        total = max(self.stages.total(), 1)
        return {stage: n / total for stage, n in self.stages.most_common()}

    def hot_lines(self, n: int = 12) -> dict[str, float]:
        """Fraction of the time at each of the ``n`` busiest lines."""
        total = max(self.lines.total(), 1)
        return {line: count / total for line, count in self.lines.most_common(n)}

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            frame = sys._current_frames().get(self._watched)
            own = [f for f in _outward(frame) if f.f_code.co_filename.startswith(PACKAGE)]
            if own:
                self.stages[_stage(own)] += 1
                self.lines[f"{Path(own[0].f_code.co_filename).name}: {_line(own[0])}"] += 1


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
