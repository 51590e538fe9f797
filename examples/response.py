"""Excitations and a polarizability of deorbitalized functionals, beside those of the parent."""

import numpy as np
from pyscf import dft, gto
from pyscf.scf import cphf

import taufree

EV = 27.211386


def lowest(mf: dft.rks.RKS) -> tuple[float, float]:
    """Lowest singlet and triplet excitation in eV, Tamm-Dancoff approximation."""
    found = [mf.TDA().set(nstates=1, singlet=s, verbose=0).run().e[0] for s in (True, False)]
    return EV * found[0], EV * found[1]


def polarizability(mf: dft.rks.RKS) -> float:
    """Mean static polarizability in bohr³ by coupled perturbed Kohn-Sham equations."""
    empty, filled = mf.mo_coeff[:, mf.mo_occ == 0], mf.mo_coeff[:, mf.mo_occ > 0]
    dipoles = np.array([empty.T @ r @ filled for r in mf.mol.intor("int1e_r")])
    response = mf.gen_response(hermi=1)

    def induced(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1, *dipoles.shape[1:])
        dms = 2 * np.einsum("pa,xai,qi->xpq", empty, x, filled)
        return np.einsum("pa,xpq,qi->xai", empty, response(dms + dms.swapaxes(1, 2)), filled)

    orbitals = cphf.solve(induced, mf.mo_energy, mf.mo_occ, dipoles)[0]
    return -4 / 3 * float(np.vdot(dipoles, orbitals))


MOLECULES = {
    "H2O": "O 0 0 0.1173; H 0 0.7572 -0.4692; H 0 -0.7572 -0.4692",
    "N2": "N 0 0 0; N 0 0 1.0977",
    "H2CO": "C 0 0 -0.528; O 0 0 0.675; H 0 0.938 -1.118; H 0 -0.938 -1.118",
}
print("      singlet / eV    triplet / eV    polarizability / bohr³")
for name, atoms in MOLECULES.items():
    mol = gto.M(atom=atoms, basis="def2-svp", verbose=0)
    for label, mf in (
        (name, taufree.deorbitalize(dft.RKS(mol).density_fit())),
        ("  MS2", dft.RKS(mol, xc="MS2").density_fit()),
    ):
        mf.grids.level = 1
        mf.kernel()
        singlet, triplet = lowest(mf)
        print(f"{label:5}{singlet:10.2f}{triplet:16.2f}{polarizability(mf):18.2f}", flush=True)
