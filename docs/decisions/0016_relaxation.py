"""How well E_relax tells where self-consistency leads, and how low a potential could bring it.

For molecules of the validation split, in mHa: ΔE_x and −E_relax at the parent's density on grid
level 1; what is left of −E_relax with the best sum of Gaussians on the nuclei added to the
potential; the surrogate's energy at the parent's density less the parent's, and by how much it then
sinks, on grid level 3.
Run: python docs/decisions/0016_relaxation.py DATA [MODEL [NAME ...]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from pyscf import df, dft

import taufree
from taufree.data.generate import converge_parent, mean_field
from taufree.functional import Functional
from taufree.model.storage import load_model
from taufree.training.relaxation import (
    Molecule,
    Molecules,
    atomic_orbitals,
    between,
    energy_errors,
)

EXPONENTS = {l: [0.05 * 2**n for n in range(8 - 2 * l)] for l in range(4)}
"""By l: from 0.05 to 6.4 of s functions, to 0.1 of f functions."""


def least_relaxation(functional: Functional, molecule: Molecule) -> float:
    """E_relax (Ha) with the Gaussians added that make it smallest."""
    density, total = molecule.density, 0.0
    mol = mean_field(molecule.system).mol
    shells = [[l, [a, 1.0]] for l, exponents in EXPONENTS.items() for a in exponents]
    gaussians = df.make_auxmol(mol, {symbol: shells for symbol in set(mol.elements)})
    values = torch.from_numpy(dft.numint.eval_ao(gaussians, density.coords.numpy()))
    chi = atomic_orbitals(molecule.system, density)
    geometry = functional.geometry(density.coords, density.centers)
    for (rho, grad_rho), orbitals in zip(density.unpolarized, molecule.channels, strict=True):
        if orbitals is None:
            continue
        ours = functional.potential(rho, grad_rho, density.weights, geometry)
        spaces = orbitals.occupied, orbitals.empty
        error = between(chi, ours.vrho, ours.vgrad, *spaces) - orbitals.target
        none = torch.zeros_like(ours.vgrad)
        rows = [between(chi, density.weights * g, none, *spaces) for g in values.T]
        scale = orbitals.gap.sqrt()
        matrix = torch.stack([(row / scale).flatten() for row in rows], 1)
        wanted = (error / scale).flatten()[:, None]
        fit = torch.linalg.lstsq(matrix, wanted, rcond=1e-6, driver="gelsd").solution
        total += 2 / density.n_spin * float((wanted - matrix @ fit).square().sum())
    return total


def main() -> None:
    """Print a line for every molecule."""
    folder, model = Path(sys.argv[1]), load_model(sys.argv[2] if len(sys.argv) > 2 else "ms2")
    molecules = Molecules(folder, "validation", 1, model.network.config.parent)
    print("           ΔE_x  −E_relax  at best | at the parent's, then  (SCF)")
    for which, entry in enumerate(molecules.entries):
        if sys.argv[3:] and entry.name not in sys.argv[3:]:
            continue
        molecule = molecules[which]
        e_x, relaxation = energy_errors(model.network, [molecule], create_graph=False)
        least = least_relaxation(model, molecule)
        mf = converge_parent(molecule.system)
        surrogate = taufree.deorbitalize(mf, model)
        dm = mf.make_rdm1()
        start = surrogate.energy_tot(dm)
        end = surrogate.kernel(dm)
        energies = (e_x.item(), -relaxation.item(), -least, start - mf.e_tot, end - start)
        print(f"{entry.name:8s}", *(f"{1e3 * e:8.2f}" for e in energies), flush=True)


if __name__ == "__main__":
    main()
