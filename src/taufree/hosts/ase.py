"""The ASE calculator: energies, forces and stress of molecules and crystals."""

from __future__ import annotations

import io
import logging
import operator
import warnings
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    InputError,
    PropertyNotImplementedError,
    ReadError,
    SCFError,
    all_changes,
)
from ase.io import jsonio
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import Bohr, Hartree
from pyscf import scf
from pyscf.pbc import scf as pbc_scf
from pyscf.pbc.df.fft import FFTDF

import taufree
from taufree.errors import UnsupportedError, UserError, WeightsError
from taufree.files import write_atomic
from taufree.functional import Functional
from taufree.hosts.exchange_correlation import same_xc
from taufree.hosts.rescue import converge
from taufree.hosts.single_point import Settings, mean_field
from taufree.hosts.stress import rotations_of, strained_stress
from taufree.model.storage import bundled_models, fingerprint

logger = logging.getLogger("taufree.ase")

NET_FORCE = 5e-3
"""eV/Å, from which on a net force is warned of: half of what geometries are relaxed to by default.
"""


class NotConvergedError(SCFError, UserError):
    """No step of the ladder converged the SCF."""


class NoPropertyError(PropertyNotImplementedError, UnsupportedError):
    """A property that these atoms and settings do not have."""


class TauFree(Calculator):
    """Deorbitalized meta-GGA through PySCF, as an ASE calculator.

    Parameters
    ----------
    model : str, path or Functional
        Name of a bundled model, a path, or a loaded functional.
    parent : bool
        Calculate the model's orbital-dependent parent instead, with the same settings.
    basis : str, optional
        Default: def2-tzvp for molecules, gth-dzvp-molopt-sr with its pseudopotentials for crystals.
    charge : int, optional
        Default: the sum of the atoms' initial charges.
    spin : int, optional
        2S = N↑ − N↓, of one cell if there is one. Default: the sum of the initial magnetic moments.
    kpts : (int, int, int), optional
        Mesh of k-points, through Γ, or ASE's ``{"size": (4, 4, 4), "gamma": True}``; crystals need
        one.
    smearing : float
        Width (eV) of the Fermi function that fills the bands of a crystal.
    grid_level : int
        PySCF's; for all but uniform grids.
    density_fit : bool
        Fit the density for the Coulomb part.
    grid_response : bool
        Forces and stress include the motion of grid points and weights, so that they are the
        derivative of the energy as it is computed, and dynamics conserves energy.
    conv_tol : float
        Of the energy, hartree.
    max_memory : int, optional
        MB.
    xc : str, optional
        The parent's name, as other calculators have it; nothing else is taken.
    restart, label, directory, atoms
        As in ASE. With a ``label``, every result is written to ``label.json`` with the density in
        ``label.npz``, and what the SCF did to ``label.log``; ``restart=label`` takes them up again,
        if the model has the same weights. One that was given as a Functional is to be given again.

    Notes
    -----
    Every calculation starts from the last density. An SCF that does not converge climbs a ladder:
    a fresh guess, damping, a level shift, smeared occupations, second order. What was done is in
    ``scf_log`` and goes to the logger ``taufree.ase``. `SCFError` is raised when nothing helps.

    ``energy`` is the energy extrapolated to zero smearing, ``free_energy`` what forces derive
    from; they differ with smearing only. Forces of crystals are without the net force, an error of
    the Fourier grid. Stress is analytic for crystals with pseudopotentials; that of all electrons,
    and of the parent, is by differences of energies of strained cells (two calculations for each
    strain that the symmetry of crystal and k-points allows: 2 if cubic, 12 at most).
    """

    atoms: Any
    implemented_properties = [  # noqa: RUF012  (ASE's way)
        "energy", "free_energy", "forces", "stress", "dipole", "magmom", "magmoms"
    ]  # fmt: skip
    default_parameters: dict[str, Any] = {  # noqa: RUF012
        "model": "ms2",
        "parent": False,
        "basis": None,
        "charge": None,
        "spin": None,
        "kpts": None,
        "smearing": 0.0,
        "grid_level": 3,
        "density_fit": True,
        "grid_response": True,
        "conv_tol": 1e-9,
        "max_memory": None,
    }

    def __init__(self, **options: Any) -> None:
        self.scf_log: list[str] = []
        self.mf: Any = None
        """PySCF's object of the last calculation."""
        self._functional: Functional | None = None
        self._given = options.get("model")
        self._density: np.ndarray | None = None
        super().__init__(**options)

    def set(self, **options: Any) -> dict[str, Any]:
        """Change parameters; results that they would change are forgotten."""
        xc = options.pop("xc", None)
        unknown = options.keys() - self.default_parameters.keys()
        if unknown:
            raise InputError(
                f"TauFree has no parameter {', '.join(sorted(unknown))}; it has "
                f"{', '.join(self.default_parameters)}."
            )
        if options.get("kpts") is not None:
            options["kpts"] = _mesh(options["kpts"])
        changed: dict[str, Any] = super().set(**options)
        if changed:
            self.reset()
            self._density = None
        if "model" in changed:
            self._functional = None
        if xc is not None and not same_xc(str(xc), self.functional.parent.xc):
            raise InputError(
                f"xc={xc!r} is not available: the functional is that of the model, which stands "
                f"for {self.functional.parent.xc}; pass model= for another."
            )
        return changed

    def reset(self) -> None:
        """Forget the last results; the density stays, to start from."""
        super().reset()
        self.mf = None

    def __getstate__(self) -> dict[str, Any]:
        """All but PySCF's object, which cannot be pickled once it has run; results stay."""
        return {**self.__dict__, "mf": None}

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """Parameters, a loaded functional by its name."""
        found: dict[str, Any] = super().todict(skip_default=skip_default)
        if "model" in found:
            model = found["model"]
            found["model"] = model.name if isinstance(model, Functional) else str(model)
        return found

    @property
    def functional(self) -> Functional:
        """The loaded model."""
        if self._functional is None:
            self._functional = taufree.load_model(self.parameters["model"])
        return self._functional

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        """Converge the SCF if anything changed, and what is asked for beyond the energy."""
        unknown = set(properties) - set(self.implemented_properties)
        if unknown:
            raise NoPropertyError(
                f"TauFree has no {', '.join(sorted(unknown))}; it has "
                f"{', '.join(self.implemented_properties)}."
            )
        super().calculate(atoms, properties, system_changes)
        if system_changes or self.mf is None:
            self.results, self.mf = {}, None  # whose orbital values take much memory
            self.mf = self._converged(self.atoms)
            self.results = _energies(self.mf)
            self._write_density()
        for name in set(properties) - self.results.keys():
            try:
                self.results[name] = getattr(self, f"_{name}")()
            except NotImplementedError as error:
                raise NoPropertyError(f"{name}: {error}") from error
        self._write()

    def mean_field(self, atoms: Atoms) -> Any:
        """PySCF's object for these atoms and parameters, not yet run."""
        p = self.parameters
        settings = Settings(
            basis=p["basis"],
            charge=p["charge"],
            spin=p["spin"],
            kpts=p["kpts"],
            smearing_ev=p["smearing"],
            grid_level=p["grid_level"],
            density_fit=p["density_fit"],
            max_memory=p["max_memory"],
        )
        mf = mean_field(atoms, settings)
        mf.conv_tol = p["conv_tol"]
        mf.conv_tol_grad = p["conv_tol"] ** 0.5 / 10  # forces are first order in this error
        if p["parent"]:
            mf.xc = self.functional.parent.xc
            return mf
        return taufree.deorbitalize(mf, self.functional)

    def _converged(self, atoms: Atoms) -> Any:
        mf = self.mean_field(atoms)
        guess = self._density
        if guess is not None and guess.shape != _density_shape(mf):
            guess = None
        self.scf_log = []
        converge(mf, guess, self._tell)
        if not mf.converged:
            raise NotConvergedError(
                f"the SCF of {atoms.symbols} did not converge (check geometry, charge and spin): "
                + "; ".join(self.scf_log)
            )
        self._density = np.asarray(mf.make_rdm1())
        return mf

    def _tell(self, line: str) -> None:
        self.scf_log.append(line)
        logger.info(line)
        if self.prefix:
            with Path(f"{self.label}.log").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    # --- properties, by ASE's names and in ASE's units

    def _forces(self) -> np.ndarray:
        if self.parameters["parent"] and self.atoms.pbc.any():
            raise UnsupportedError(
                "PySCF has none for crystals with a meta-GGA such as the parent; its surrogate has."
            )
        forces: np.ndarray = -self._gradients().kernel() * (Hartree / Bohr)
        if not self.atoms.pbc.any():
            return forces
        net = float(np.linalg.norm(forces.sum(0)))
        if net > NET_FORCE:
            self._tell(f"net force {net:.4f} eV/Å, taken out")
            warnings.warn(
                f"the crystal has a net force of more than {NET_FORCE} eV/Å, an error of the "
                "Fourier grid, which is taken out: forces are no more accurate than that (its size "
                "is in scf_log).",
                stacklevel=2,
            )
        return forces - forces.mean(0)

    def _gradients(self) -> Any:
        return self.mf.Gradients().set(grid_response=self.parameters["grid_response"])

    def _stress(self) -> np.ndarray:
        if not self.atoms.pbc.any():
            raise UnsupportedError("a molecule has no cell.")
        if self.mf.cell._pseudo and not self.parameters["parent"]:
            stress = self._gradients().get_stress() * (Hartree / Bohr**3)
        else:
            stress = strained_stress(self.atoms, self._free_energy_of, rotations_of(self.mf))
        found: np.ndarray = full_3x3_to_voigt_6_stress((stress + stress.T) / 2)
        return found

    def _free_energy_of(self, atoms: Atoms) -> float:
        mf = self.mean_field(atoms)
        if type(mf.with_df) is FFTDF:  # its mesh, in fractions of the cell, stays: no step in E
            mf.cell.mesh = mf.with_df.mesh = self.mf.with_df.mesh
        converge(mf, self._density, self._tell)
        if not mf.converged:
            raise NotConvergedError(f"the SCF of a strained {atoms.symbols} did not converge.")
        return _energies(mf)["free_energy"]

    def _dipole(self) -> np.ndarray:
        if self.atoms.pbc.any():
            raise UnsupportedError("the dipole of a crystal is not defined by its density.")
        moment: np.ndarray = self.mf.dip_moment(unit="AU", verbose=0) * Bohr
        return moment

    def _magmom(self) -> float:
        return float(self._magmoms().sum())

    def _magmoms(self) -> np.ndarray:
        """Mulliken spin populations."""
        return spin_populations(self.mf)

    # --- files

    def _write(self) -> None:
        if not self.prefix:
            return
        parameters, model = self.todict(), self.parameters["model"]
        if not isinstance(model, Functional) and str(model) not in bundled_models():
            parameters["model"] = str(Path(model).absolute())
        state = {
            "atoms": self.atoms,
            "parameters": parameters,
            "weights": fingerprint(self.functional),
            "results": self.results,
        }
        write_atomic(Path(f"{self.label}.json"), jsonio.encode(state).encode())

    def _write_density(self) -> None:
        if self.prefix and self._density is not None:
            content = io.BytesIO()
            np.savez(content, density=self._density)
            write_atomic(Path(f"{self.label}.npz"), content.getvalue())

    def read(self, label: str) -> None:
        """Take up what a calculator with this label and the same weights wrote."""
        super().read(label)
        path = Path(f"{self.label}.json")
        try:
            state = jsonio.decode(path.read_text("utf-8"))
            self.parameters = self.get_default_parameters()
            self.parameters.update(state["parameters"])
            if self.parameters["kpts"] is not None:  # a list in JSON
                self.parameters["kpts"] = _mesh(self.parameters["kpts"])
            self.atoms, self.results = state["atoms"], state["results"]
            weights = state["weights"]
            content = io.BytesIO(Path(f"{self.label}.npz").read_bytes())
            self._density = np.load(content)["density"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ReadError(f"{path} is no complete result of TauFree: {error}") from error
        if self._given is not None:
            self.parameters["model"] = self._given
        self._functional = None
        try:
            same = fingerprint(self.functional) == weights
        except WeightsError as error:
            raise ReadError(f"{path} needs its model, give it with model=: {error}") from error
        if not same:
            raise ReadError(
                f"{path} was calculated with other weights than those of "
                f"{self.functional.name!r}: give the model it was calculated with by model=, or "
                "leave out restart."
            )


def _mesh(kpts: Any) -> tuple[int, int, int]:
    """Three whole numbers, or ASE's dictionary of a mesh through Γ."""
    if isinstance(kpts, dict) and kpts.keys() == {"size", "gamma"} and kpts["gamma"]:
        kpts = kpts["size"]
    try:
        a, b, c = map(operator.index, kpts)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"kpts={kpts!r} is not available: give a mesh through Γ, kpts=(4, 4, 4) or "
            "kpts={'size': (4, 4, 4), 'gamma': True}."
        ) from error
    return a, b, c


def _density_shape(mf: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = mf.mol.nao, mf.mol.nao
    if hasattr(mf, "kpts"):
        shape = len(mf.kpts), *shape
    unrestricted = isinstance(mf, scf.uhf.UHF | pbc_scf.kuhf.KUHF)
    return (2, *shape) if unrestricted else shape


def _energies(mf: Any) -> dict[str, float]:
    """Energy without smearing, and the one that forces derive from; eV."""
    free = getattr(mf, "e_free", None)
    zero = getattr(mf, "e_zero", None)
    energy = mf.e_tot if zero is None else zero
    return {"energy": energy * Hartree, "free_energy": (energy if free is None else free) * Hartree}


def spin_populations(mf: Any) -> np.ndarray:
    """Mulliken N↑ − N↓ of every atom, (n_atoms,); zero without unpaired electrons."""
    cell = hasattr(mf, "kpts")
    dm = np.asarray(mf.make_rdm1())
    if dm.ndim == (3 if cell else 2):
        return np.zeros(mf.mol.natm)
    product = (dm[0] - dm[1]) * np.asarray(mf.get_ovlp()).swapaxes(-1, -2)
    by_orbital = product.sum(-1).real
    by_orbital = by_orbital.mean(0) if cell else by_orbital
    slices = mf.mol.aoslice_by_atom()[:, 2:]
    return np.array([by_orbital[first:last].sum() for first, last in slices])
