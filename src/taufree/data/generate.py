"""Parent densities from PySCF: one self-consistent calculation, then everything on its grids."""

from __future__ import annotations

import numpy as np
from pyscf import dft, gto

from taufree.data.systems import System

PARENT_EXCHANGE = {"MS2": "MGGA_X_MS2", "R2SCAN": "MGGA_X_R2SCAN"}


def converge_parent(system: System) -> dft.rks.RKS:
    """Density-fitted RKS or UKS of the parent functional with PySCF's defaults."""
    mol = gto.M(
        atom=list(zip(system.symbols, system.positions, strict=True)),
        unit="Bohr",
        basis=system.basis,
        charge=system.charge,
        spin=system.spin,
        verbose=0,
    )
    mf = (dft.UKS if system.spin else dft.RKS)(mol, xc=system.parent).density_fit()
    mf.grids.level = 3
    mf.kernel()
    if not mf.converged:
        mf = mf.newton()
        mf.kernel(mf.mo_coeff, mf.mo_occ)
    return mf


def grid_record(mf: dft.rks.RKS, dm: np.ndarray, level: int, parent: str) -> dict[str, np.ndarray]:
    """Density, orbitals' τ and the parent's exchange on the Becke grid of ``level``.

    Each spin channel σ is stored as ρσ; exchange and its derivatives are those of the unpolarized
    functional at 2ρσ, so that E_x = ½ Σ_σ ∫ e_x[2ρσ] (exact spin scaling). For a closed shell the
    single channel is the total density and E_x = ∫ e_x[ρ].
    """
    grids = dft.gen_grid.Grids(mf.mol)
    grids.level = level
    grids.build()
    ni = dft.numint.NumInt()
    dms = np.asarray(dm).reshape(-1, *np.shape(dm)[-2:])
    fields = []
    for d in dms:
        blocks = [
            ni.eval_rho(mf.mol, ao, d, mask, xctype="MGGA", hermi=1, with_lapl=True)
            for ao, mask, _, _ in ni.block_loop(mf.mol, grids, d.shape[0], deriv=2)
        ]
        fields.append(np.concatenate(blocks, axis=1))
    field = np.array(fields)  # (n_spin, 6, n_points): rho, grad(3), lapl, tau
    scale = len(dms)  # 2 ρσ, or the total density itself
    exchange = [
        ni.eval_xc(PARENT_EXCHANGE[parent], scale * f, spin=0, deriv=1)[:2] for f in field
    ]
    rho, tau = field[:, 0], field[:, 5]
    return {
        "coords": grids.coords,
        "weights": grids.weights,
        "rho": rho,
        "grad_rho": field[:, 1:4].transpose(0, 2, 1),
        "lapl": field[:, 4],
        "tau": tau,
        "exc": np.array([exc * scale * n for (exc, _), n in zip(exchange, rho, strict=True)]),
        "vrho": np.array([v[0] for _, v in exchange]),
        "vsigma": np.array([v[1] for _, v in exchange]),
        "vtau": np.array([v[3] for _, v in exchange]),
    }
