"""What turning a molecule on its grid changes of E_xc, by a model and by its parent.

Hartree-Fock densities in def2-SVP, which know no grid; grid level 3; four random turns of each of
five molecules. Prints μHa.
Run: python docs/decisions/0018_turning.py [MODEL]
"""

from __future__ import annotations

import sys

import numpy as np
from ase.build import molecule
from numpy.typing import NDArray
from pyscf import dft, gto
from pyscf.dft import numint
from scipy.spatial.transform import Rotation

import taufree
from taufree.functional import Functional

MOLECULES = ("H2O2", "CH3OH", "H2CO", "HCN", "C2H4")
TURNS = 4
LEVEL = 3


def energies(functional: Functional, name: str, turn: int) -> NDArray[np.float64]:
    """E_xc of the model and of its parent, (2,); turn 0 is the molecule as ASE has it."""
    atoms = molecule(name)
    if turn:
        atoms.positions @= Rotation.random(random_state=turn).as_matrix().T
    geometry = list(zip(atoms.symbols, atoms.positions, strict=True))
    mol = gto.M(atom=geometry, basis="def2-svp", verbose=0)
    dm = np.array(mol.RHF().density_fit().run(conv_tol=1e-11).make_rdm1())
    mf = dft.RKS(mol)
    mf.grids.level = LEVEL
    mf = taufree.deorbitalize(mf, functional)
    model = mf._numint.nr_rks(mol, mf.grids, mf.xc, dm)[1]
    return np.array([model, numint.NumInt().nr_rks(mol, mf.grids, mf.xc, dm)[1]])


def main() -> None:
    """One line a molecule, then all together."""
    functional = taufree.load_model(sys.argv[1] if len(sys.argv) > 1 else "ms2")
    changes = []
    for name in MOLECULES:
        still = energies(functional, name, 0)
        turned = [energies(functional, name, turn) for turn in range(1, TURNS + 1)]
        changes.append(1e6 * np.abs(np.array(turned) - still))
        print(f"{name:6} model {changes[-1][:, 0].round(1)} parent {changes[-1][:, 1].round(1)}")
    both = np.concatenate(changes)
    print(f"mean of the model {both[:, 0].mean():.1f}, of the parent {both[:, 1].mean():.1f}")
    print(f"largest change beyond the parent's {(both[:, 0] - both[:, 1]).max():.1f}")


if __name__ == "__main__":
    main()
