"""Deorbitalize a restricted and an unrestricted calculation, and compare one with its parent."""

from pathlib import Path

from ase.io import read
from pyscf import dft, gto

import taufree

HERE = Path(__file__).parent


def molecule(name: str, spin: int) -> gto.Mole:
    """Read a structure beside this script; ``spin`` is the number of unpaired electrons."""
    atoms = read(HERE / name)
    geometry = list(zip(atoms.get_chemical_symbols(), atoms.positions, strict=True))
    return gto.M(atom=geometry, basis="def2-svp", spin=spin, verbose=0)


# A closed shell, beside its parent. The object stays a PySCF object: everything that needs only the
# potential works as before.
water = molecule("water.xyz", spin=0)
mf = taufree.deorbitalize(dft.RKS(water).density_fit())
mf.kernel()
parent = dft.RKS(water, xc="MS2").density_fit()
parent.kernel()
print(f"H2O  {mf.e_tot:.6f} hartree in {mf.cycles} cycles")
print(f"     {1000 * (mf.e_tot - parent.e_tot):+.2f} millihartree from MS2")
print("     dipole moment", mf.dip_moment(verbose=0).round(3), "debye")

# A radical, without density fitting and with a level shift.
nitrogen_dioxide = molecule("no2_radical.xyz", spin=1)
mf = taufree.deorbitalize(dft.UKS(nitrogen_dioxide))
mf.level_shift = 0.1
mf.kernel()
print(f"NO2  {mf.e_tot:.6f} hartree, <S²> = {mf.spin_square()[0]:.3f}")
