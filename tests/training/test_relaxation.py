"""E_relax against PySCF's own matrices, and against what self-consistency does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tolerances import SCREENING

import taufree
from taufree.data.generate import calculate, converge_parent
from taufree.data.splits import Split
from taufree.data.store import digest, read_manifest, write_manifest, write_record
from taufree.data.systems import registry
from taufree.errors import UserError
from taufree.training import relaxation
from taufree.training.relaxation import Molecule, Molecules, energy_errors

SECOND_ORDER = 0.25
"""Relative: E_relax leaves out third order and how the Fock matrix answers to turned orbitals."""


def molecule(folder: Path, name: str, split: Split = "train") -> Molecule:
    molecules = Molecules(folder, split, 0, "ms2")
    return molecules[[entry.name for entry in molecules.entries].index(name)]


@pytest.mark.parametrize("name", ["LiH", "Li"])  # closed and open shell
def test_relaxation_is_that_of_pyscf_matrices(folder: Path, name: str) -> None:
    drawn, model = molecule(folder, name), taufree.load_model("ms2").double()
    mf = converge_parent(registry()[name])
    mf.grids.level = 0
    mf.grids.build()
    dm, n_ao = mf.make_rdm1(), mf.mol.nao
    rule = "nr_uks" if registry()[name].spin else "nr_rks"
    integrators = taufree.deorbitalize(mf, model)._numint, mf._numint
    ours, parents = (getattr(ni, rule)(mf.mol, mf.grids, "MS2", dm) for ni in integrators)
    expected = 0.0
    errors = np.reshape(ours[2] - parents[2], (-1, n_ao, n_ao))
    for error, orbitals in zip(errors, drawn.channels, strict=True):
        turned = orbitals.empty.numpy().T @ error @ orbitals.occupied.numpy()
        expected += 2 / len(errors) * (turned**2 / orbitals.gap.numpy()).sum()
    e_x, relaxation = energy_errors(model.network, [drawn], create_graph=False)
    assert relaxation.item() == pytest.approx(expected, rel=1e-5)  # points below 1e-12 are left out
    assert e_x.item() == pytest.approx(ours[1] - parents[1], abs=SCREENING)


def test_molecules_together_are_as_one_by_one(folder: Path) -> None:
    model = taufree.load_model("ms2").double()
    drawn = [molecule(folder, "LiH"), molecule(folder, "Li")]
    together = energy_errors(model.network, drawn, create_graph=False)
    alone = [energy_errors(model.network, [m], create_graph=False) for m in drawn]
    for a, b in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(a, torch.cat(b), rtol=1e-9, atol=1e-11)


def test_molecules_prepared_by_processes_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaxation, "A_PROCESS", 1)
    monkeypatch.setattr(relaxation, "CPU_COUNT", 2)
    model, molecules = taufree.load_model("ms2"), Molecules(folder, "train", 0, "ms2")
    molecules.prepare(torch.device("cpu"))
    for entry, prepared in zip(molecules.entries, molecules, strict=True):
        pair = [prepared, molecule(folder, entry.name)]
        e_x, relax = energy_errors(model.network, pair, create_graph=False)
        assert e_x[0].item() == pytest.approx(e_x[1].item(), abs=1e-7)
        assert relax[0].item() == pytest.approx(relax[1].item(), rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_on_a_gpu(folder: Path) -> None:
    network, drawn = taufree.load_model("ms2").double().network, molecule(folder, "Li")
    here = energy_errors(network, [drawn], create_graph=False)
    there = energy_errors(network.cuda(), [drawn.on(torch.device("cuda"))], create_graph=False)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-8)  # orbitals in float32 there


def test_it_tells_how_far_self_consistency_leads(tmp_path: Path) -> None:
    """On grid level 1: on 0 the parent itself sinks by a third as much from the density of 3."""
    model, system = taufree.load_model("ms2"), registry()["NH"]
    entry = write_record(tmp_path, calculate(system, (1,)), digest(system, (1,)))
    write_manifest(tmp_path, {"NH": entry})
    mf = converge_parent(system)
    mf.grids.level = 1
    mf.grids.build()
    surrogate = taufree.deorbitalize(mf, model)
    surrogate.conv_tol = 1e-10
    start = surrogate.energy_tot(mf.make_rdm1())
    lowering = start - surrogate.kernel(mf.make_rdm1())
    drawn = Molecules(tmp_path, "validation", 1, "ms2")[0]
    _, relaxation = energy_errors(model.network, [drawn], create_graph=False)
    assert lowering == pytest.approx(relaxation.item(), rel=SECOND_ORDER)


def test_a_split_without_molecules_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match="no such test molecules"):
        Molecules(folder, "test", 0, "ms2")


def test_systems_of_another_version_are_refused(folder: Path, tmp_path: Path) -> None:
    entry = next(entry for entry in read_manifest(folder).values() if entry.name == "LiH")
    write_manifest(tmp_path, {"LiH-cold": replace(entry, name="LiH-cold")})
    with pytest.raises(UserError, match="LiH-cold, which this version of taufree does not know"):
        Molecules(tmp_path, "train", 0, "ms2")
