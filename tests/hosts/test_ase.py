"""The ASE calculator: units, properties, states, files and what it does when an SCF is hard."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import (
    InputError,
    PropertyNotImplementedError,
    ReadError,
    SCFError,
)
from ase.constraints import FixAtoms
from ase.units import Bohr, Debye, Hartree
from pyscf.scf import hf
from scipy.linalg import null_space

from networks import random_functional, random_network
from taufree.ase import TauFree
from taufree.errors import UnsupportedError, UserError
from taufree.functional import Functional
from taufree.hosts import dynamics, rescue
from taufree.hosts.single_point import Settings, mean_field
from taufree.hosts.stress import STRAIN, invariant_strains, rotations_of, strained_stress
from taufree.hosts.structures import charge_and_spin
from taufree.model.storage import save_model

SETTINGS: dict[str, Any] = {"basis": "sto-3g", "grid_level": 0, "conv_tol": 1e-10}
FORCE = 1e-4  # eV/Å, of differences of energies at ±0.001 Å


@pytest.fixture(scope="module")
def functional() -> Functional:
    return random_functional(roughness=1.0)


@pytest.fixture
def hydrogen(functional: Functional) -> Atoms:
    return Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], calculator=TauFree(model=functional, **SETTINGS))


@pytest.fixture(scope="module")
def water(functional: Functional) -> Atoms:
    """Calculated once; tests read it."""
    atoms = molecule("H2O")
    atoms.calc = TauFree(model=functional, **SETTINGS)
    atoms.get_potential_energy()
    return atoms


def test_units(water: Atoms) -> None:
    mf = water.calc.mf
    assert water.get_potential_energy() == pytest.approx(mf.e_tot * Hartree)
    assert water.get_potential_energy(force_consistent=True) == water.get_potential_energy()
    debye = mf.dip_moment(unit="Debye", verbose=0)
    np.testing.assert_allclose(water.get_dipole_moment() / Debye, debye, rtol=1e-5)
    gradient = mf.Gradients().set(grid_response=True).kernel()
    np.testing.assert_allclose(water.get_forces(), -gradient * Hartree / Bohr, atol=1e-12)


def test_forces_are_those_of_the_energy(hydrogen: Atoms) -> None:
    force = hydrogen.get_forces()[1, 2]
    energies = []
    for z in (0.801, 0.799):
        hydrogen.positions[1, 2] = z
        energies.append(hydrogen.get_potential_energy())
    assert force == pytest.approx((energies[1] - energies[0]) / 0.002, abs=FORCE)
    assert "last density" in hydrogen.calc.scf_log[0]


def test_nothing_is_calculated_twice(hydrogen: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    hydrogen.get_potential_energy()
    mf = hydrogen.calc.mf
    hydrogen.get_forces()
    hydrogen.get_dipole_moment()
    assert hydrogen.calc.mf is mf
    hydrogen.positions[1, 2] += 0.01
    hydrogen.get_potential_energy()
    assert hydrogen.calc.mf is not mf


def test_changed_parameters_forget_results(hydrogen: Atoms) -> None:
    e = hydrogen.get_potential_energy()
    hydrogen.calc.set(basis="6-31g")
    assert hydrogen.calc.results == {}
    assert hydrogen.get_potential_energy() < e - 0.1


def test_open_shells_by_initial_moments_or_by_spin(functional: Functional) -> None:
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], magmoms=[1, 0])
    atoms.calc = TauFree(model=functional, **SETTINGS)
    assert atoms.get_magnetic_moment() == pytest.approx(1)
    assert atoms.get_magnetic_moments()[0] == pytest.approx(1, abs=0.1)
    e = atoms.get_potential_energy()
    bare = Atoms("OH", atoms.positions)
    bare.calc = TauFree(model=functional, spin=1, **SETTINGS)
    assert bare.get_potential_energy() == pytest.approx(e, abs=1e-5)


@pytest.mark.parametrize("moments", [(1, -1), (2, -1), (-3, 0.5)])
def test_moments_of_both_signs_are_refused(
    functional: Functional, moments: tuple[float, float]
) -> None:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 3]], magmoms=moments)
    atoms.calc = TauFree(model=functional, **SETTINGS)
    with pytest.raises(UnsupportedError, match="broken-symmetry UKS"):
        atoms.get_potential_energy()
    assert atoms.calc.set(spin=0) and atoms.calc.mean_field(atoms).mol.spin == 0


def test_charges_and_moments_are_whole_numbers(functional: Functional) -> None:
    """Mulliken populations, which have tails of the other sign, sum to one; others are refused."""
    calculator = TauFree(model=functional, **SETTINGS)
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], magmoms=[1.02, -0.02], charges=[-0.3, 0.3])
    assert charge_and_spin(atoms, None, None) == (0, 1)
    assert mean_field(atoms, Settings(basis="sto-3g")).mol.spin == 1  # as in `taufree run`
    atoms.set_initial_charges([0.4, 0])
    with pytest.raises(UnsupportedError, match=r"total charge of 0\.4 .* charge= or --charge"):
        calculator.mean_field(atoms)
    atoms.set_initial_charges([0, 0])
    atoms.set_initial_magnetic_moments([2.5, 0])
    with pytest.raises(UnsupportedError, match=r"total moment of 2\.5 .* spin= or --spin"):
        calculator.mean_field(atoms)
    assert TauFree(model=functional, spin=1, **SETTINGS).mean_field(atoms).mol.spin == 1


def test_kpts_in_the_ways_of_ase() -> None:
    assert TauFree(kpts={"size": (2, 3, 4), "gamma": True}).parameters["kpts"] == (2, 3, 4)
    assert TauFree(kpts=np.array([2, 3, 4])).parameters["kpts"] == (2, 3, 4)
    for kpts in (4, (2, 2), "222", {"size": (2, 2, 2)}, {"density": 3.5}, (2.5, 2, 2)):
        with pytest.raises(InputError, match="give a mesh through Γ"):
            TauFree(kpts=kpts)


def test_xc_is_the_parents(functional: Functional) -> None:
    assert TauFree(model=functional, xc="ms2").todict() == {"model": "random"}
    with pytest.raises(InputError, match=r"xc='PBE' .* stands for MS2; pass model="):
        TauFree(model=functional, xc="PBE")


def test_properties_that_it_does_not_have(hydrogen: Atoms) -> None:
    with pytest.raises(PropertyNotImplementedError, match="no charges; it has energy"):
        hydrogen.calc.calculate(hydrogen, ["charges"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_copies_keep_results_and_go_on(water: Atoms, copied: Callable[[Any], Any]) -> None:
    atoms = water.copy()
    atoms.calc = copied(water.calc)
    assert water.calc.mf is not None and atoms.calc.mf is None
    assert atoms.get_potential_energy() == water.get_potential_energy()
    assert atoms.calc.mf is None  # nothing was calculated
    atoms.calc.results.pop("forces", None)  # another test may have asked for them
    np.testing.assert_allclose(atoms.get_forces(), water.get_forces(), atol=1e-3)
    assert "last density" in atoms.calc.scf_log[0]


def test_closed_shells_have_no_moments(water: Atoms) -> None:
    np.testing.assert_array_equal(water.get_magnetic_moments(), np.zeros(3))


def test_parent(functional: Functional) -> None:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    atoms.calc = TauFree(model=functional, parent=True, **SETTINGS)
    atoms.get_potential_energy()
    assert atoms.calc.mf.xc == "MS2" and not hasattr(atoms.calc.mf, "functional")
    assert np.isfinite(atoms.get_forces()).all()


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="no parameter functional; it has model, parent, basis"):
        TauFree(functional="PBE")


def test_bad_settings_are_refused(functional: Functional) -> None:
    atoms = molecule("H2O")
    for options in ({"basis": "no-such-basis"}, {"spin": 1}, {"kpts": (2, 2, 2)}):
        atoms.calc = TauFree(model=functional, **{**SETTINGS, **options})
        with pytest.raises(UserError):
            atoms.get_potential_energy()


def test_stress_of_a_molecule_is_refused(water: Atoms) -> None:
    with pytest.raises(PropertyNotImplementedError, match="no cell"):
        water.get_stress()


def test_crystal(functional: Functional, monkeypatch: pytest.MonkeyPatch) -> None:
    """PySCF's gradient and stress in ASE's units, signs and order; the parent's are refused."""
    gradient = np.array([[0.1, 0, -0.2], [-0.1, 0.02, 0.2]])
    stress = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]) / 100
    where = "taufree.hosts.pbc_gradients.DeorbitalizedKGradients"
    monkeypatch.setattr(f"{where}.get_stress", lambda self: stress)
    monkeypatch.setattr(f"{where}.kernel", lambda self: gradient, raising=False)
    monkeypatch.setattr(TauFree, "_converged", TauFree.mean_field)  # no SCF is needed
    monkeypatch.setattr("taufree.hosts.ase._energies", lambda mf: {"energy": 0.0})
    atoms = Atoms("H2", [[0, 0, 0], [0.1, 0, 0.8]], cell=[2.2, 2.3, 2.4], pbc=True)
    settings = {"basis": "gth-szv", "kpts": (1, 1, 1), "grid_level": 0}
    atoms.calc = TauFree(model=functional, **settings)
    voigt = np.array([1, 2, 3, 4, 5, 6]) / 100
    np.testing.assert_allclose(atoms.get_stress(), voigt * Hartree / Bohr**3)
    forces = (gradient.mean(0) - gradient) * Hartree / Bohr  # without the net force
    with pytest.warns(UserWarning, match="net force of more than 0.005"):
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-12)
    assert atoms.calc.scf_log[-1].startswith("net force 1.0284 eV/Å")  # 0.02 hartree/bohr
    with pytest.raises(PropertyNotImplementedError, match="not defined by its density"):
        atoms.get_dipole_moment()
    atoms.calc = TauFree(model=functional, parent=True, **settings)
    with pytest.raises(PropertyNotImplementedError, match="its surrogate has"):
        atoms.get_forces()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the crystal has a net force")  # of a coarse Fourier grid
def test_crystal_forces_and_stress_are_those_of_its_free_energy(
    functional: Functional, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiF with an atom out of place, so hot that its occupations count; grids as coarse as can be.

    The energy has steps, up to 5e-5 hartree on this grid, where an image of an atom comes to share
    the cell or no longer does: the geometry is one without such a step close by.
    """
    monkeypatch.setattr("taufree.hosts.structures.CUTOFF_OF_EXPONENT", 4.0)
    settings = {"basis": "gth-szv", "kpts": (2, 2, 2), "grid_level": 0, "smearing": 2.0}
    atoms = bulk("LiF", "rocksalt", a=4.03)
    atoms.positions += [[0.3094, 0.22, 0.1308], [0.3606, 0.24, 0.0992]]
    atoms.calc = TauFree(model=functional, **settings)
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    found = atoms.calc.results
    assert found["energy"] - found["free_energy"] > 0.01
    cell, positions = atoms.cell.array.copy(), atoms.positions.copy()
    mesh = atoms.calc.mf.cell.mesh

    def slope(step: float, moved: Callable[[float], None]) -> float:
        energies = []
        for t in (step, -step):
            moved(t)
            energies.append(atoms.get_potential_energy(force_consistent=True))
            assert (atoms.calc.mf.cell.mesh == mesh).all()
        return float(energies[0] - energies[1]) / (2 * step)

    way = np.array([[-0.6, 0, 0.8], [0.6, 0, -0.8]])
    apart = slope(0.001, lambda t: atoms.set_positions(positions + t * way))
    assert np.vdot(forces, way) == pytest.approx(-apart, rel=1e-3)
    atoms.positions = positions
    strain = np.array([[0.6, 0.2, 0], [0.2, 0, 0], [0, 0, 0.8]])
    stretched = slope(
        1e-3, lambda t: atoms.set_cell(cell @ (np.eye(3) + t * strain), scale_atoms=True)
    )
    volume = abs(np.linalg.det(cell))
    assert np.vdot(stress, strain) * volume == pytest.approx(stretched, rel=1e-3)


# --- files


def test_label_writes_and_restart_takes_up(
    functional: Functional, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.calc = TauFree(model=functional, label="here/h2", **SETTINGS)
    e = atoms.get_potential_energy()
    assert "converged" in Path("here/h2.log").read_text()
    again = TauFree(restart="here/h2", model=functional)
    assert again.parameters["basis"] == "sto-3g"
    assert again.get_property("energy", atoms) == e
    assert again.mf is None  # nothing is calculated
    with pytest.raises(ReadError, match="no complete result"):
        TauFree(restart="here/other")


def test_a_restart_goes_on_from_the_stored_density(functional: Functional, tmp_path: Path) -> None:
    label = str(tmp_path / "h2")
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.calc = TauFree(model=functional, label=label, **SETTINGS)
    atoms.get_potential_energy()
    density = Path(f"{label}.npz").stat()
    forces = atoms.get_forces()
    assert Path(f"{label}.npz").stat() == density  # written after an SCF only
    atoms.calc = TauFree(restart=label, model=functional)
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    assert atoms.calc.mf is None
    atoms.positions[1, 2] = 0.81
    e = atoms.get_potential_energy()
    assert atoms.calc.scf_log[0].startswith("SCF from the last density: converged")
    atoms.calc = TauFree(model=functional, **SETTINGS)
    assert atoms.get_potential_energy() == pytest.approx(e, abs=1e-6)


def test_a_restart_with_other_weights_is_refused(functional: Functional, tmp_path: Path) -> None:
    """A network that is called like a bundled one, and one whose file was replaced."""
    label, weights = str(tmp_path / "h2"), tmp_path / "mine.safetensors"
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    mine = Functional(functional.network, "ms2")
    atoms.calc = TauFree(model=mine, label=label, **SETTINGS)
    atoms.get_potential_energy()
    with pytest.raises(ReadError, match=r"other weights than those of 'ms2'.* model="):
        TauFree(restart=label)
    assert TauFree(restart=label, model=mine).results == atoms.calc.results
    save_model(weights, functional.network, {})
    atoms.calc = TauFree(model=weights, label=label, **SETTINGS)
    atoms.get_potential_energy()
    assert TauFree(restart=label).results == atoms.calc.results
    save_model(weights, random_network(seed=1), {})
    with pytest.raises(ReadError, match="other weights than those of 'mine'"):
        TauFree(restart=label)
    weights.unlink()
    with pytest.raises(ReadError, match=r"give it with model=: No model .*mine"):
        TauFree(restart=label)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_truncated_density_is_refused(
    functional: Functional, tmp_path: Path, share: float
) -> None:
    label = str(tmp_path / "h2")
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    atoms.calc = TauFree(model=functional, label=label, **SETTINGS)
    atoms.get_potential_energy()
    content = Path(f"{label}.npz").read_bytes()
    Path(f"{label}.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ReadError, match="no complete result"):
        TauFree(restart=label, model=functional)


def test_todict_is_plain(functional: Functional) -> None:
    assert TauFree(model=functional, spin=1).todict() == {"model": "random", "spin": 1}


# --- rescue


def test_an_easy_scf_takes_one_step(water: Atoms) -> None:
    assert len(water.calc.scf_log) == 1 and "converged in" in water.calc.scf_log[0]


AIDS: dict[str, dict[str, Any]] = {
    "damping": {"damp": 0.5, "diis_start_cycle": 8, "diis_space": 16},
    "level shift": {"level_shift": 0.3, "max_cycle": 150},
    "smeared": {"sigma": 0.02},
}
"""What PySCF has to be told at each step of the ladder."""


def settings_of(mf: Any) -> dict[str, Any]:
    names = {name for aid in AIDS.values() for name in aid}
    return {name: getattr(mf, name, None) for name in names}


def stubborn(monkeypatch: pytest.MonkeyPatch, needs: str | None) -> list[dict[str, Any]]:
    """PySCF's SCF, which does not converge before it had this aid; what it was told, run by run."""
    told: list[dict[str, Any]] = []
    original = hf.kernel

    def kernel(mf: Any, *args: Any, **options: Any) -> Any:
        told.append(settings_of(mf))
        converged, *rest = original(mf, *args, **options)
        helped = needs and any(AIDS[needs].items() <= settings.items() for settings in told)
        return converged and bool(helped), *rest

    monkeypatch.setattr(hf, "kernel", kernel)
    return told


@pytest.mark.parametrize("needs", AIDS)
def test_each_step_of_the_ladder(water: Atoms, needs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reached, its aid reaches PySCF, and the end is the plain functional's energy."""
    mf = water.calc.mean_field(water)
    plain = settings_of(mf)
    told, lines = stubborn(monkeypatch, needs), list[str]()
    rescue.converge(mf, None, lines.append)
    assert lines[-1].startswith(needs) and "did not" not in lines[-1]
    assert len(lines) == 2 + list(AIDS).index(needs)
    assert mf.converged and told[0] == told[-1] == settings_of(mf) == plain
    assert mf.e_tot == pytest.approx(water.calc.mf.e_tot, abs=1e-7)


def test_second_order_is_kept_though_diis_would_not_hold_it(
    water: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    mf = water.calc.mean_field(water)
    stubborn(monkeypatch, needs=None)
    lines: list[str] = []
    rescue.converge(mf, None, lines.append)
    assert lines[-1].startswith("second order (Newton): converged")
    assert len(lines) == 5 and mf.converged
    assert mf.e_tot == pytest.approx(water.calc.mf.e_tot, abs=1e-7)
    np.testing.assert_allclose(mf.mo_energy, water.calc.mf.mo_energy, atol=1e-4)
    gradient = mf.Gradients().set(grid_response=True).kernel()
    np.testing.assert_allclose(-gradient * Hartree / Bohr, water.get_forces(), atol=1e-3)


@pytest.mark.parametrize("system", ["molecule", "crystal"])
def test_damping_acts(system: str, functional: Functional, monkeypatch: pytest.MonkeyPatch) -> None:
    """PySCF mixes Fock matrices, in the first cycles of the step that damps."""
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])
    settings: dict[str, Any] = {**SETTINGS, "basis": "6-31g"}
    if system == "crystal":
        atoms.set_cell([2.2, 2.3, 2.4])
        atoms.pbc = True
        settings |= {"basis": "gth-dzv", "kpts": (1, 1, 1), "parent": True}
    mf = TauFree(model=functional, **settings).mean_field(atoms)
    if system == "crystal":
        mf.xc, mf.with_df.mesh = "LDA", [11, 11, 11]  # for speed
    mf.max_cycle = 3  # PySCF has nothing to mix with in the first
    mf.kernel()
    factors: list[float] = []
    original = hf.damping

    def damping(fock: Any, last: Any, factor: float) -> Any:
        factors.append(factor)
        return original(fock, last, factor)

    monkeypatch.setattr(hf, "damping", damping)
    rescue._with(mf, **{**AIDS["damping"], "conv_tol": 1e-30})
    assert factors == [0.5, 0.5] and mf.damp == 0 and mf.diis_start_cycle == 1


def test_an_scf_that_nothing_helps_raises(
    functional: Functional, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], calculator=TauFree(model=functional, **SETTINGS))

    def fails(mf: Any, guess: Any, log: Any) -> Any:
        log("nothing helped")
        return mf

    monkeypatch.setattr("taufree.hosts.ase.converge", fails)
    with pytest.raises(SCFError, match=r"H2 did not converge .*: nothing helped"):
        atoms.get_potential_energy()


# --- what ASE does with it


class Springs(TauFree):
    """A calculator that costs nothing: two atoms at 0.8 Å."""

    rest = 0.8

    def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
        self.atoms = atoms.copy()
        bond = atoms.positions[1] - atoms.positions[0]
        length = np.linalg.norm(bond)
        force = 30 * (length - self.rest) * bond / length
        self.results = {
            "energy": 15 * (length - self.rest) ** 2,
            "free_energy": 15 * (length - self.rest) ** 2,
            "forces": np.array([force, -force]),
        }


@pytest.fixture
def springs() -> Atoms:
    return Atoms("H2", [[0, 0, 0], [0, 0, 0.9]], calculator=Springs())


def test_relax(springs: Atoms, tmp_path: Path) -> None:
    seen: list[int] = []
    out = tmp_path / "h2.traj"
    result = dynamics.relax(springs, out, fmax=1e-3, progress=lambda step, _: seen.append(step))
    assert result["converged"] and seen == list(range(result["steps"] + 1))
    assert springs.get_distance(0, 1) == pytest.approx(0.8, abs=1e-4)
    assert (tmp_path / "h2.xyz").exists()


def test_vibrations(springs: Atoms, tmp_path: Path) -> None:
    springs.positions[1, 2] = 0.8
    result = dynamics.vibrations(springs, tmp_path / "vib")
    expected = np.sqrt(30 / (springs.get_masses()[0] / 2)) * IN_CM
    assert result["frequencies_cm"] == pytest.approx([expected], rel=1e-3)
    assert len(result["rigid_cm"]) == 5 and result["imaginary"] == 0


class Harmonic(TauFree):
    """Forces of a Hessian (3n, 3n), eV/Å², about the positions at rest."""

    def calculate(self, atoms: Any = None, properties: Any = (), system_changes: Any = ()) -> None:
        self.atoms = atoms.copy()
        x = (atoms.positions - self.rest).ravel()
        self.results = {"energy": x @ self.hessian @ x / 2, "free_energy": x @ self.hessian @ x / 2}
        self.results["forces"] = -(self.hessian @ x).reshape(-1, 3)


def harmonic(atoms: Atoms, internal: list[float], noise: list[float]) -> Atoms:
    """With these squared frequencies (eV/Å²/u) of vibrations and, by noise, of the whole."""
    rigid = dynamics.rigid_motion(atoms)
    modes = np.vstack([null_space(rigid).T, rigid])
    mass = np.repeat(atoms.get_masses(), 3) ** 0.5
    hessian = modes.T @ np.diag(internal + noise) @ modes
    atoms.calc = Harmonic()
    atoms.calc.rest, atoms.calc.hessian = atoms.positions.copy(), hessian * np.outer(mass, mass)
    return atoms


IN_CM = 521.4709
"""√(eV/Å²/u)"""


def test_a_soft_mode_is_kept(tmp_path: Path) -> None:
    """Of 5 cm⁻¹, below the noise of rotations, 50 cm⁻¹, which the smallest frequencies are not."""
    squares = [(cm / IN_CM) ** 2 for cm in (5, 1600, 3700)]
    noise = [0.0] * 3 + [(50 / IN_CM) ** 2] * 3
    atoms = harmonic(molecule("H2O"), squares, noise)
    found = dynamics.vibrations(atoms, tmp_path / "water")
    assert found["frequencies_cm"] == pytest.approx([5, 1600, 3700], abs=1e-2)
    assert found["rigid_cm"] == pytest.approx([0] * 3 + [50] * 3, abs=1e-2)


def test_a_soft_imaginary_mode_is_kept(tmp_path: Path) -> None:
    atoms = harmonic(molecule("H2O"), [-((5 / IN_CM) ** 2), 9.0, 50.0], [0.0] * 6)
    found = dynamics.vibrations(atoms, tmp_path / "water")
    assert found["imaginary"] == 1
    assert found["frequencies_cm"][0] == pytest.approx(-5, abs=1e-2)


@pytest.mark.parametrize(
    ("bend", "rigid"), [(0, 5), (1, 5), (10, 6)], ids=["linear", "almost", "bent"]
)
def test_molecules_that_are_almost_linear(bend: float, rigid: int) -> None:
    """CO2, bent by some degrees."""
    half = np.radians(bend) / 2
    out, up = 1.16 * np.cos(half), 1.16 * np.sin(half)
    co2 = Atoms("OCO", [[-out, up, 0], [0, 0, 0], [out, up, 0]])
    co2.rotate(50, (1, 2, 3))
    motion = dynamics.rigid_motion(co2)
    assert len(motion) == rigid
    np.testing.assert_allclose(motion @ motion.T, np.eye(rigid), atol=1e-12)
    assert len(dynamics.rigid_motion(Atoms("H"))) == 3


def test_held_atoms_hold_the_others(springs: Atoms, tmp_path: Path) -> None:
    """One atom of two: a spring and the mass of one, and two modes across that cost nothing."""
    springs.positions[1, 2] = 0.8
    springs.set_constraint(FixAtoms([0]))
    found = dynamics.vibrations(springs, tmp_path / "held")
    expected = IN_CM * np.sqrt(30 / springs.get_masses()[0])
    assert found["frequencies_cm"][2] == pytest.approx(expected, rel=1e-3)
    assert len(found["frequencies_cm"]) == 3 and found["rigid_cm"] == []
    dynamics.molecular_dynamics(springs, tmp_path / "held.traj", steps=5, timestep_fs=0.1)
    np.testing.assert_array_equal(springs.positions[0], 0)


def test_dynamics_conserves_energy_and_goes_on(springs: Atoms, tmp_path: Path) -> None:
    start = springs.positions.copy()
    whole = dynamics.molecular_dynamics(springs, tmp_path / "whole.traj", steps=20, timestep_fs=0.1)
    assert whole["steps"] == 20
    assert whole["largest_deviation_hartree_per_atom"] < 1e-4
    parts = Atoms("H2", start, calculator=Springs())
    dynamics.molecular_dynamics(parts, tmp_path / "parts.traj", steps=8, timestep_fs=0.1)
    parts = Atoms("H2", start, calculator=Springs())
    second = dynamics.molecular_dynamics(parts, tmp_path / "parts.traj", steps=20, timestep_fs=0.1)
    assert second["steps"] == 20
    np.testing.assert_allclose(parts.positions, springs.positions, atol=1e-10)
    assert second["energy_ev"] == pytest.approx(whole["energy_ev"])
    stiffer = Atoms("H2", start, calculator=Springs())
    stiffer.calc.rest = 0.7
    with pytest.raises(UserError, match="other settings or another model"):
        dynamics.molecular_dynamics(stiffer, tmp_path / "parts.traj", steps=30, timestep_fs=0.1)
    other = Atoms("H2", start + 0.1, calculator=Springs())
    with pytest.raises(UserError, match="begun from other atoms"):
        dynamics.molecular_dynamics(other, tmp_path / "parts.traj", steps=30, timestep_fs=0.1)


def test_dynamics_conserves_the_free_energy(tmp_path: Path) -> None:
    """Forces derive from it, not from the energy without smearing, here that of other springs."""

    class Smeared(Springs):
        def calculate(self, atoms: Any = None, *args: Any, **options: Any) -> None:
            super().calculate(atoms, *args, **options)
            self.results["energy"] *= 0.5

    out = tmp_path / "smeared.traj"
    for steps in (10, 20):  # the second takes up the first
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.9]], calculator=Smeared())
        found = dynamics.molecular_dynamics(atoms, out, steps=steps, timestep_fs=0.1)
        assert found["largest_deviation_hartree_per_atom"] < 1e-4
    assert found["steps"] == 20


@pytest.mark.slow
def test_dynamics_of_water_conserves_energy(water: Atoms, tmp_path: Path) -> None:
    """A model that has learned nothing, on the smallest grid: what counts is that F = −dE/dR."""
    atoms = water.copy()
    atoms.calc = water.calc
    found = dynamics.molecular_dynamics(atoms, tmp_path / "water.traj", steps=40)
    assert abs(found["drift_hartree_per_atom"]) < 1e-5


def test_strained_stress() -> None:
    """Of an energy whose strain derivative is known: E = tr(S ε) + O(ε²)."""
    crystal = Atoms("H", cell=[3, 3, 3], pbc=True)
    s = np.array([[1, 0.2, 0], [0.2, 2, -0.3], [0, -0.3, 3]])

    def energy(atoms: Atoms) -> float:
        strain = atoms.cell.array / 3 - np.eye(3)
        return float((s * strain).sum() + 5 * (strain**2).sum())

    np.testing.assert_allclose(strained_stress(crystal, energy), s / 27, atol=1e-12)


@pytest.mark.parametrize(
    ("crystal", "kpts", "strains"),
    [
        (bulk("Si"), (2, 2, 2), 1),
        (bulk("Si"), (2, 2, 3), 4),  # the mesh is less symmetric than the crystal
        (bulk("Mg"), (2, 2, 2), 2),
        (bulk("MgO", "rocksalt", a=4.2), (2, 2, 2), 1),
    ],
    ids=["Si", "Si 223", "Mg", "MgO"],
)
def test_strains_that_symmetry_leaves(
    crystal: Atoms, kpts: tuple[int, int, int], strains: int
) -> None:
    mf = mean_field(crystal, Settings(basis="def2-svp", kpts=kpts))
    rotations = rotations_of(mf)
    assert len(invariant_strains(rotations)) == strains
    lattice = mf.cell.lattice_vectors()
    for rotation in rotations:  # the lattice onto itself
        steps = lattice @ rotation.T @ np.linalg.inv(lattice)
        np.testing.assert_allclose(steps, steps.round(), atol=1e-8)


def test_strained_cells_have_one_mesh(
    functional: Functional, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of silicon whose own meshes step from 27 to 29 between the two strained cells."""
    calculator = TauFree(model=functional, kpts=(2, 2, 2), parent=True)
    silicon = bulk("Si", a=5.46)
    own, meshes = set(), []
    for scale in (1 - STRAIN, 1 + STRAIN):
        strained = silicon.copy()
        strained.set_cell(silicon.cell * scale, scale_atoms=True)
        own.add(tuple(calculator.mean_field(strained).cell.mesh))
    assert len(own) == 2  # else this tests nothing

    def not_run(mf: Any, *args: Any) -> Any:
        meshes.append([*mf.cell.mesh, *mf.with_df.mesh, *mf.with_df.grids.mesh])
        mf.converged, mf.e_tot = True, 0.0
        return mf

    monkeypatch.setattr("taufree.hosts.ase.converge", not_run)
    monkeypatch.setattr(TauFree, "_converged", TauFree.mean_field)
    monkeypatch.setattr("taufree.hosts.ase._energies", lambda mf: {"free_energy": 0.0})
    calculator.calculate(silicon, ["stress"])
    assert meshes == [[*calculator.mf.cell.mesh] * 3] * 2


def test_strained_stress_of_a_cubic_crystal() -> None:
    """One strain gives the pressure, and its shear is zero."""
    crystal, calls = bulk("Si"), []

    def energy(atoms: Atoms) -> float:
        calls.append(atoms)
        return float(np.log(atoms.get_volume()))

    quarter_turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    about_the_diagonal = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    group = {tuple(np.eye(3, dtype=int).ravel())}
    while True:
        products = {
            tuple((np.reshape(g, (3, 3)) @ r).ravel())
            for g in group
            for r in (quarter_turn, about_the_diagonal)
        }
        if products <= group:
            break
        group |= products
    rotations = np.reshape(sorted(group), (-1, 3, 3)).astype(float)
    assert len(rotations) == 24
    stress = strained_stress(crystal, energy, rotations)
    assert len(calls) == 2
    np.testing.assert_allclose(stress * crystal.get_volume(), np.eye(3), atol=1e-4)
