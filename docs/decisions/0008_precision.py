"""Cycles and energies of self-consistent calculations with the network in float32 and in float64.

Run: python docs/decisions/0008_precision.py
"""

from ase.build import molecule
from pyscf import dft, gto

import taufree

SYSTEMS = (
    ("C6H6", "def2-svp", 0),
    ("H2CO", "def2-svp", 0),
    ("SO2", "def2-svp", 0),
    ("CH3SH", "def2-tzvp", 0),
    ("SiF4", "def2-svp", 0),
)


def main() -> None:
    """Density-fitted RKS or UKS with the bundled model on grid level 1."""
    single = taufree.load_model("ms2")
    for name, basis, spin in SYSTEMS:
        atoms = list(zip(molecule(name).symbols, molecule(name).positions, strict=True))
        mol = gto.M(atom=atoms, basis=basis, spin=spin, verbose=0)
        runs = []
        for functional in (single, single.double()):
            mf = (dft.UKS if spin else dft.RKS)(mol).density_fit()
            mf = taufree.deorbitalize(mf, functional)
            mf.grids.level = 1
            mf.kernel()
            runs.append((mf.cycles, mf.e_tot))
        (cycles, energy), (exact_cycles, exact) = runs
        print(f"{name} {basis}: {cycles}, {exact_cycles} cycles; {energy - exact:+.1e} hartree")


if __name__ == "__main__":
    main()
