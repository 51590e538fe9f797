"""The analytic deorbitalizers run self-consistently, beside the parent: v_xc with ∇²ρ.

PySCF refuses functionals of the Laplacian. With e(ρ, ∇ρ, ∇²ρ) its matrix is that of a GGA and

    ∫ ∂e/∂(∇²ρ) ∇²(φ_μ φ_ν) = ∫ ∂e/∂(∇²ρ) (φ_μ ∇²φ_ν + φ_ν ∇²φ_μ + 2 ∇φ_μ·∇φ_ν),

partial derivatives by autodiff. The prototype's systems, as `taufree evaluate scf` runs them:
density-fitted, def2-TZVP, grid level 3, PySCF's defaults.
Run: python docs/decisions/0009_scf.py OUT.json [RECIPE ...], where ms2 may be one
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyscf.dft.numint import NumInt
from torch import Tensor

import taufree
from taufree.data.generate import mean_field
from taufree.data.systems import registry
from taufree.evaluation.density import PROTOTYPE
from taufree.functional import hold
from taufree.physics.descriptors import (
    contracted_gradient,
    lda_exchange,
    reduced_gradient_squared,
    reduced_laplacian,
)
from taufree.physics.kinetic import DEORBITALIZERS, Deorbitalizer
from taufree.physics.parents import PARENTS

PARENT = PARENTS["ms2"]


class LaplacianNumInt(NumInt):
    """E_xc and V_xc of MS2 with α̃(p, q) of an analytic deorbitalizer."""

    def __init__(self, recipe: Deorbitalizer) -> None:
        super().__init__()
        self.recipe = recipe

    def exchange(self, fields: Tensor) -> Tensor:
        """e_x of ρ, ∇ρ, ∇²ρ, (5, n_points), of an unpolarized density."""
        rho, gradient, held = hold(fields[0], fields[1:4].T)
        sigma = contracted_gradient(gradient)
        p, q = reduced_gradient_squared(rho, sigma), reduced_laplacian(rho, fields[4])
        return held * lda_exchange(rho) * PARENT.enhancement(p, self.recipe(p, q))

    def partial(self, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """e_x (n_points,) and its derivatives by ρσ, ∇ρσ and ∇²ρσ, (n_spin, 5, n_points)."""
        n_spin = len(fields)
        x = torch.tensor(fields).requires_grad_()
        exc = sum(self.exchange(n_spin * one) for one in x) / n_spin
        (derivative,) = torch.autograd.grad(exc.sum(), x)
        return exc.detach().numpy(), derivative.numpy()

    def xc(self, mol: Any, grids: Any, dms: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """Electrons, E_xc and V_xc of one density matrix a spin channel, or of a closed shell."""
        electrons, energy = np.zeros(len(dms)), 0.0
        matrix = np.zeros_like(dms)
        nao = dms.shape[-1]
        for ao, mask, weights, _ in self.block_loop(mol, grids, nao, 2, 2000):
            rho = np.stack(
                [self.eval_rho(mol, ao, dm, mask, "MGGA", 1, with_lapl=True) for dm in dms]
            )
            exc, derivative = self.partial(rho[:, :5])
            spin = len(dms) - 1
            gga = rho[:, :4] if spin else rho[0, :4]
            ec, vc = self.eval_xc_eff(f",{PARENT.correlation}", gga, 1, xctype="GGA")[:2]
            derivative[:, :4] += vc if spin else vc[None]
            electrons += rho[:, 0] @ weights
            energy += weights @ (exc + ec * rho[:, 0].sum(0))
            laplacian = ao[4] + ao[7] + ao[9]
            for v, d in zip(matrix, derivative * weights, strict=True):
                half = 0.5 * d[0, :, None] * ao[0] + d[4, :, None] * laplacian
                half += np.einsum("xp,xpi->pi", d[1:4], ao[1:4])
                part = ao[0].T @ half
                part += sum(a.T @ (d[4, :, None] * a) for a in ao[1:4])
                v += part + part.T
        return electrons, energy, matrix

    def nr_rks(self, mol: Any, grids: Any, xc_code: str, dms: Any, *_: Any, **__: Any) -> Any:
        n, e, v = self.xc(mol, grids, np.asarray(dms)[None])
        return n[0], e, v[0]

    def nr_uks(self, mol: Any, grids: Any, xc_code: str, dms: Any, *_: Any, **__: Any) -> Any:
        return self.xc(mol, grids, np.asarray(dms))


def converge(name: str, which: str) -> dict[str, Any]:
    """A self-consistent calculation: "parent", "ms2" or a recipe."""
    mf = mean_field(registry()[name])
    if which == "ms2":
        mf = taufree.deorbitalize(mf)
    elif which != "parent":
        mf._numint = LaplacianNumInt(DEORBITALIZERS[which])
    energy = mf.kernel()
    return {"energy_hartree": float(energy), "converged": bool(mf.converged), "cycles": mf.cycles}


def discrepancy(recipe: Deorbitalizer) -> float:
    """V_xc of CH against finite differences of E_xc along a random direction, relative."""
    mf = mean_field(registry()["CH"])
    mf.max_cycle = 3
    mf.kernel()
    dm, numint = np.asarray(mf.make_rdm1()), LaplacianNumInt(recipe)
    random = np.random.default_rng(0).standard_normal(dm.shape)
    direction = 0.1 * (random + random.transpose(0, 2, 1)) * abs(dm)
    up, down = (numint.xc(mf.mol, mf.grids, dm + h * direction)[1] for h in (1e-4, -1e-4))
    slope = (numint.xc(mf.mol, mf.grids, dm)[2] * direction).sum()
    return float(abs((up - down) / 2e-4 / slope - 1))


def main() -> None:
    """Run what is not in OUT.json yet, and print a row for every recipe."""
    out = Path(sys.argv[1])
    results = json.loads(out.read_text()) if out.exists() else {}
    print(f"V_xc of PCopt off by {discrepancy(DEORBITALIZERS['PCopt']):.0e}")
    for which in ["parent", *(sys.argv[2:] or ["ms2", *DEORBITALIZERS])]:
        runs = results.setdefault(which, {})
        for name in PROTOTYPE:
            if name not in runs:
                runs[name] = converge(name, which)
                out.write_text(json.dumps(results, indent=1))
        done = [name for name in PROTOTYPE if runs[name]["converged"]]
        parent = results["parent"]
        errors = [abs(runs[n]["energy_hartree"] - parent[n]["energy_hartree"]) for n in done]
        cycles = statistics.median(run["cycles"] for run in runs.values())
        print(f"{which}: {len(done)} of {len(runs)} converged, {cycles} cycles", end="")
        print(f", {1e3 * statistics.mean(errors):.1f} mHa" if done else "", flush=True)


if __name__ == "__main__":
    main()
