"""Parent meta-GGAs: an analytic enhancement factor F_x(p, α) each, and the correlation beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from taufree.physics.parents import ms2


@dataclass(frozen=True)
class Parent:
    """A meta-GGA whose exchange depends on τ through α, e_x = ρ ε_x^LDA F_x(p, α).

    ``xc`` is the whole functional and ``exchange``, ``correlation`` its parts, in libxc's names;
    ``correlation`` must not need τ.
    """

    xc: str
    exchange: str
    correlation: str
    enhancement: Callable[[Tensor, Tensor], Tensor]


PARENTS = {"ms2": Parent("MS2", "MGGA_X_MS2", "GGA_C_REGTPSS", ms2.enhancement)}
