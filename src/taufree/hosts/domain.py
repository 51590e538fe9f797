"""Where a model's errors are known, and where they are not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import ArrayLike

from taufree.errors import DomainWarning
from taufree.functional import Functional
from taufree.model.tokens import gaussian_exponents


def unresolved_spacing(
    functional: Functional, lattice: np.ndarray, mesh: ArrayLike
) -> float | None:
    """Spacing (bohr) of a uniform grid too coarse for the sharpest Gaussian of a token, or None.

    The sum over such a grid is right to 2 exp(−π²/(a h²)), h the distance of its planes; beyond
    a h² = 1 energies depend on where nuclei sit between its points.

    Parameters
    ----------
    lattice : (3, 3)
        Cell vectors as rows, bohr.
    mesh : (3,)
        Points along each.
    """
    planes = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    spacing = float((planes / np.asarray(mesh)).max())
    sharpest = float(gaussian_exponents(functional.network.config)[-1])
    return spacing if sharpest * spacing**2 > 1 else None


def warn_unresolved(functional: Functional, lattice: np.ndarray, mesh: ArrayLike) -> None:
    """Warn of a grid that has an `unresolved_spacing`."""
    spacing = unresolved_spacing(functional, lattice, mesh)
    if spacing is not None:
        warnings.warn(
            f"a uniform grid with a spacing of {spacing:.2f} bohr does not resolve what the tokens "
            "of this model see, which makes errors of several millihartree an atom: set "
            "mf.grids = pyscf.pbc.dft.BeckeGrids(cell), also with pseudopotentials.",
            DomainWarning,
            stacklevel=2,
        )


def warn_unseen(functional: Functional, mol: Any) -> None:
    """Warn of elements of a PySCF molecule or cell that the model was not trained on.

    And of pseudopotentials of elements that it knows with all electrons only.
    """
    symbols = {mol.atom_pure_symbol(i) for i in range(mol.natm)}
    unseen = sorted(symbols & {*atomic_numbers} - functional.elements)  # and no ghosts
    if functional.elements and unseen:
        warnings.warn(
            f"{functional.name} was not trained on {', '.join(unseen)}: its errors there are not "
            f"known, so compare with {functional.parent.xc} (--parent) before you rely on it.",
            DomainWarning,
            stacklevel=3,
        )
    replaced = {mol.atom_pure_symbol(i) for i in range(mol.natm) if mol.atom_nelec_core(i)}
    unseen = sorted((replaced & functional.elements) - functional.pseudopotentials)
    if functional.elements and unseen:
        warnings.warn(
            f"{functional.name} has learned {', '.join(unseen)} with all electrons: with "
            "pseudopotentials its errors are not known and can be large, so choose an all-electron "
            "basis such as def2-svp.",
            DomainWarning,
            stacklevel=3,
        )
