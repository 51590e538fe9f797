"""PySCF's multigrid integrators with the surrogate in place of libxc's exchange.

They make ρ and ∇ρ on the whole uniform grid, ask once for energies and derivatives at all points,
and turn the derivatives into a matrix as for any GGA: all that a non-local functional needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pyscf.pbc.dft.multigrid import MultiGridNumInt, MultiGridNumInt2

from taufree.errors import UnsupportedError
from taufree.functional import Functional
from taufree.hosts.domain import warn_unresolved
from taufree.hosts.exchange_correlation import ExchangeCorrelation, nuclei, periodic_vectors
from taufree.hosts.integrator import PERIODIC_PARENT, Deorbitalizing


class _Multigrid(Deorbitalizing):
    parent_call = PERIODIC_PARENT

    def eval_xc_eff(  # type: ignore[override]
        self, xc_code: str, rho: np.ndarray, deriv: int = 1, *args: Any, **kwargs: Any
    ) -> tuple[np.ndarray, np.ndarray, None, None]:
        """Energy per electron (n_points,) and derivatives (..., 4, n_points), as in PySCF."""
        self.check(xc_code)
        xc = self._on_grid()
        density = rho.reshape(-1, 4, len(xc.weights))
        if deriv != 1:
            self._refuse()
        energy_density, derivative = xc(density)
        xc.refine(energy_density @ xc.weights)
        total = density[:, 0].sum(0)
        exc = np.divide(energy_density, total, out=np.zeros_like(total), where=energy_density != 0)
        return exc, (derivative / xc.weights).reshape(rho.shape), None, None

    def _on_grid(self) -> ExchangeCorrelation:
        """Neighbour lists of the grid; made anew when cell or mesh change."""
        cell = self.cell  # type: ignore[attr-defined]
        mesh = np.array(self.mesh)  # type: ignore[attr-defined]
        state = cell._env, cell.lattice_vectors(), mesh
        if self._cache is None or not all(map(np.array_equal, state, self._cache[0])):
            warn_unresolved(self.functional, cell.lattice_vectors(), mesh)
            weights = np.full(mesh.prod(), cell.vol / mesh.prod())
            where = cell.get_uniform_grids(mesh, wrap_around=False), weights
            xc = ExchangeCorrelation(self.functional, *where, nuclei(cell), periodic_vectors(cell))
            self._cache = (state[0].copy(), *state[1:]), xc
        return self._cache[1]


class DeorbitalizedMultiGrid(_Multigrid, MultiGridNumInt):
    """`MultiGridNumInt`: k-points."""


class DeorbitalizedMultiGrid2(_Multigrid, MultiGridNumInt2):
    """`MultiGridNumInt2`: Γ only, faster."""


def deorbitalized(ni: MultiGridNumInt, functional: Functional) -> Any:
    """The same integrator, with its mesh and tasks, for the surrogate."""
    vectors = periodic_vectors(ni.cell)
    if vectors is None or len(vectors) < 3:
        raise UnsupportedError(
            "Multigrid integration of a wire or a cluster is not available for a deorbitalized "
            "functional; use the object's own grids."
        )
    second = isinstance(ni, MultiGridNumInt2)
    new = ni.view(DeorbitalizedMultiGrid2 if second else DeorbitalizedMultiGrid)
    new.functional, new._cache = functional, None
    return new
