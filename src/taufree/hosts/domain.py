"""Where a model's errors are known, and where they are not."""

from __future__ import annotations

import warnings
from typing import Any

from ase.data import atomic_numbers

from taufree.errors import DomainWarning
from taufree.functional import Functional
from taufree.model.tokens import gaussian_exponents


def warn_unresolved(functional: Functional, spacing: float) -> None:
    """Warn of a uniform grid (``spacing``, bohr) too coarse for the sharpest Gaussian of a token.

    The sum over such a grid is right to 2 exp(−π²/(a h²)); beyond a h² = 1 energies depend on where
    nuclei sit between its points.
    """
    sharpest = float(gaussian_exponents(functional.network.config)[-1])
    if sharpest * spacing**2 > 1:
        warnings.warn(
            f"a uniform grid with a spacing of {spacing:.2f} bohr does not resolve what the tokens "
            "of this model see, which makes errors of several millihartree an atom: set "
            "mf.grids = pyscf.pbc.dft.BeckeGrids(cell), also with pseudopotentials.",
            DomainWarning,
            stacklevel=2,
        )


def warn_unseen(functional: Functional, mol: Any) -> None:
    """Warn of elements of a PySCF molecule or cell that the model was not trained on."""
    symbols = {mol.atom_pure_symbol(i) for i in range(mol.natm)}
    unseen = sorted(symbols & {*atomic_numbers} - functional.elements)  # and no ghosts
    if functional.elements and unseen:
        warnings.warn(
            f"{functional.name} was not trained on {', '.join(unseen)}: its errors there are not "
            f"known, so compare with {functional.parent.xc} (--parent) before you rely on it.",
            DomainWarning,
            stacklevel=3,
        )
