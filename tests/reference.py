"""Independent references: libxc called directly, densities with exact or Hartree-Fock orbitals."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyscf.lib
import torch
from numpy.typing import NDArray
from pyscf import dft, gto
from torch import Tensor

from taufree.physics.descriptors import contracted_gradient
from taufree.quantities import GridDensity

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OrbitalDensity:
    """A density with its orbitals' τ and ∇²ρ beside it, (n_spin, n_points) each."""

    density: GridDensity
    tau: Tensor
    lapl: Tensor

    @property
    def unpolarized(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """ρ, σ, τ, ∇²ρ (n_points,) of twice each spin density, or of a closed shell itself."""
        d = self.density
        scaled = d.n_spin * d.rho, d.n_spin**2 * contracted_gradient(d.grad_rho)
        return list(zip(*scaled, d.n_spin * self.tau, d.n_spin * self.lapl, strict=True))


def orbital_density(mf: Any, level: int = 0) -> OrbitalDensity:
    """Everything about the density of a converged PySCF object on its Becke grid."""
    mol = mf.mol
    grids = dft.gen_grid.Grids(mol)
    grids.level = level
    grids.build()
    ao = dft.numint.eval_ao(mol, grids.coords, deriv=2)
    dms = np.asarray(mf.make_rdm1()).reshape(-1, mol.nao, mol.nao)
    field = np.array([dft.numint.eval_rho(mol, ao, d, xctype="MGGA", with_lapl=True) for d in dms])
    field = torch.from_numpy(field)  # (n_spin, 6, n_points): ρ, ∇ρ, ∇²ρ, τ
    density = GridDensity(
        coords=torch.from_numpy(grids.coords),
        weights=torch.from_numpy(grids.weights),
        rho=field[:, 0],
        grad_rho=field[:, 1:4].mT.contiguous(),
        centers=torch.from_numpy(mol.atom_coords()),
    )
    return OrbitalDensity(density, tau=field[:, 5], lapl=field[:, 4])


def hydrogen_atom() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ρ, σ, τ, ∇²ρ of the exact 1s orbital; ρ = e^{−2r}/π on 0.01 ≤ r ≤ 12."""
    r = torch.linspace(0.01, 12, 400, dtype=torch.float64)
    rho = torch.exp(-2 * r) / torch.pi
    return rho, 4 * rho**2, rho / 2, (4 - 4 / r) * rho


def radial_quadrature() -> tuple[Tensor, Tensor]:
    """Nodes r and weights 4πr²w for ∫d³r f(r) of functions that decay like e^{−8r/3}."""
    x, w = np.polynomial.laguerre.laggauss(60)
    scale = 3 / 8
    r, dr = torch.from_numpy(x * scale), torch.from_numpy(w * np.exp(x) * scale)
    return r, 4 * torch.pi * r**2 * dr


class Libxc:
    """One unpolarized meta-GGA of the libxc that PySCF carries, called through its C interface.

    PySCF's own interface refuses functionals of ∇²ρ. All arguments are (n_points,) tensors of
    float64; derivatives are those of the energy per volume.
    """

    _lib = ctypes.CDLL(str(Path(pyscf.lib.__file__).parent / "deps" / "lib" / "libxc.so"))
    _lib.xc_func_alloc.restype = ctypes.c_void_p
    _first = ("rho", "sigma", "lapl", "tau")
    _second = tuple(itertools.combinations_with_replacement(_first, 2))

    def __init__(self, name: str) -> None:
        number = self._lib.xc_functional_get_number(name.lower().encode())
        self._func = ctypes.c_void_p(self._lib.xc_func_alloc())
        assert number > 0 and self._lib.xc_func_init(self._func, number, 1) == 0, name
        # libxc lifts smaller σ and τ; at ρ = 1e-8 its defaults are of the size of k_F²ρ²
        for field in ("sigma", "tau"):
            getattr(self._lib, f"xc_func_set_{field}_threshold")(self._func, ctypes.c_double(1e-40))

    def energy(self, *fields: Tensor) -> Tensor:
        """Energy per volume from ρ, σ, ∇²ρ, τ."""
        return fields[0] * self._call("xc_mgga_exc", fields, 1)[0]

    def first(self, *fields: Tensor) -> dict[str, Tensor]:
        """Derivatives by ``rho``, ``sigma``, ``lapl``, ``tau``."""
        return dict(zip(self._first, self._call("xc_mgga_vxc", fields, 4), strict=True))

    def second(self, *fields: Tensor) -> dict[tuple[str, str], Tensor]:
        """Second derivatives, by pairs of the same names in the same order."""
        return dict(zip(self._second, self._call("xc_mgga_fxc", fields, 10), strict=True))

    def _call(self, function: str, fields: tuple[Tensor, ...], n_out: int) -> list[Tensor]:
        n = len(fields[0])
        inputs = [x.detach().contiguous().numpy() for x in fields]
        outputs = list(np.zeros((n_out, n)))
        pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in inputs + outputs]
        getattr(self._lib, function)(self._func, ctypes.c_size_t(n), *pointers)
        return [torch.from_numpy(x) for x in outputs]


def water_molecule(basis: str = "6-31g", **options: Any) -> gto.Mole:
    """H2O in its experimental geometry."""
    atoms = "O 0 0 0.1173; H 0 0.7572 -0.4692; H 0 -0.7572 -0.4692"
    return gto.M(atom=atoms, basis=basis, verbose=0, **options)


def hydroxyl_radical(basis: str = "6-31g") -> gto.Mole:
    """OH in its experimental geometry, a doublet."""
    return gto.M(atom="O 0 0 0; H 0 0 0.9697", basis=basis, spin=1, verbose=0)
