"""How much of a force is lost when the points of the grid stay: with and without ``grid_response``.

Largest difference of any component, hartree/bohr, of the model and of its parent, def2-SVP, on
grids of PySCF's levels 3, 5 and 7, and with (radial, angular) points on each atom. With the
response forces are derivatives of the energy as it is computed.
Run: python docs/decisions/0007_grid.py
"""

from __future__ import annotations

from typing import Any

from ase.build import molecule
from pyscf import dft, gto

import taufree

GRIDS: tuple[Any, ...] = (3, 5, 7, (300, 302))


def difference(mf: Any) -> float:
    """Largest component of the forces' difference, hartree/bohr."""
    mf.conv_tol = 1e-10
    mf.kernel()
    forces = []
    for response in (False, True):
        gradient = mf.nuc_grad_method().set(grid_response=response)
        forces.append(gradient.kernel())
    return float(abs(forces[0] - forces[1]).max())


def main() -> None:
    """Print one row a molecule and functional."""
    print("largest difference, hartree/bohr, of grids", GRIDS)
    for name, spin in (("H2O", 0), ("CH3OH", 0), ("NO2", 1)):
        atoms = molecule(name)
        pairs = list(zip(atoms.symbols, atoms.positions, strict=True))
        mol = gto.M(atom=pairs, basis="def2-svp", spin=spin, verbose=0)
        for functional in ("ms2", "MS2"):
            found = []
            for grid in GRIDS:
                mf = dft.KS(mol, xc="MS2").density_fit()
                if isinstance(grid, tuple):
                    mf.grids.set(atom_grid=grid, prune=None)
                else:
                    mf.grids.level = grid
                found.append(difference(taufree.deorbitalize(mf) if functional == "ms2" else mf))
            print(f"{name:6s} {functional:4s}", *(f"{x:.1e}" for x in found), flush=True)


if __name__ == "__main__":
    main()
