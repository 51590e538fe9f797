"""The report: one file, everything in it, readable by a browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taufree.errors import UserError
from taufree.evaluation import (
    density,
    geometry,
    invariance,
    limits,
    reactions,
    scf,
    solids,
    targets,
)
from taufree.evaluation.equation_of_state import EOS
from taufree.evaluation.report import kind_of, write_report
from taufree.evaluation.report_figures import bonding_kind, density_groups
from taufree.training.plots import learning_curve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KINDS = {"H2": "g2", "LiF": "g2", "N2": "g2", "Al-fcc": "crystals", "Al-fcc-gth": "crystals-gth"}
HEADINGS = [
    "Targets", "Errors at the parent's densities (density)", "Self-consistent results (scf)",
    "Barriers and interaction energies (reactions)", "Crystals (solids)",
    "Geometries and vibrations (geometry)", "Relaxed cells (cells)", "Exact conditions (limits)",
    "What is lost without invariance (invariance)", "xc",
]  # fmt: skip


def a_density_result() -> dict[str, Any]:
    systems = [
        {
            "name": name, "formula": name.split("-")[0], "kind": kind, "n_electrons": 10,
            "errors": {
                row: dict.fromkeys(density.COLUMNS, size * (i + 1))
                for row, size in (("model", 0.5), ("PCopt", 70.0), ("published", 30.0))
            },
        }
        for i, (name, kind) in enumerate(KINDS.items())
    ]  # fmt: skip
    return {
        "model": "ms2", "parent": "MS2", "densities": ["MS2"], "split": "test", "grid_level": 1,
        "atom_grid_levels": {}, "missing": [], "systems": systems,
        "means": density._means(systems),
        "routing": {"electron_share": [0.5, 0.5], "max_active": 2},
    }  # fmt: skip


def an_scf_result() -> dict[str, Any]:
    def line(name: str, energy: float) -> dict[str, Any]:
        run = {
            "converged": True, "cycles": 3, "energy_hartree": energy, "wall_s": 1.0,
            "energies_hartree": [energy + 1e-2, energy + 1e-5, energy],
        }  # fmt: skip
        return {
            "name": name, "formula": name, "kind": "g2", "basis": "def2-tzvp",
            "deorbitalized": run, "parent": run, "de_total_mha": 0.25, "d_dipole_debye": 0.0,
            "d_gap_ev": -0.5,
            "atomization_kcal": 0.125,
        }  # fmt: skip

    lines = [line("H2", -1.17), line("N2", -109.5)]
    atoms = [line("H", -0.5), line("N", -54.6)]
    atoms[1]["deorbitalized"] = atoms[1]["parent"] | {"converged": False, "rescued": True}
    return {
        "model": "ms2", "potential": "ks", "parent": "MS2", "split": "test", "grid_level": 3,
        "summary": scf.summary(lines), "systems": lines,
        "atoms": atoms,
    }  # fmt: skip


def a_reactions_result() -> dict[str, Any]:
    line = {
        "name": "Water_dimer", "set": "s22", "energy_kcal": -6.0, "parent_kcal": -6.125,
        "error_kcal": 0.125, "reference_kcal": -5.02,
    }  # fmt: skip
    return {
        "model": "ms2", "parent": "MS2", "basis": "def2-svp", "grid_level": 3,
        "summary": {"s22": {
            **reactions._summary([line]), "n_systems": 3, "converged": 3, "median_cycles": 9.0,
            "parent_median_cycles": 8.5,
        }}, "reactions": [line], "left_out": [],
    }  # fmt: skip


def a_solids_result() -> dict[str, Any]:
    def curve(volume: float) -> dict[str, Any]:
        eos = EOS(energy=-7.0, volume=volume, bulk_modulus=0.003, derivative=4.0, rms=0.0)
        points = [
            {
                "converged": True,
                "cycles": 9,
                "wall_s": 1.0,
                "energy_hartree": eos.energy + float(eos(np.array(v))),
            }
            for v in volumes
        ]
        found = {"lattice_constant_angstrom": 5.4, "bulk_modulus_gpa": 88.0, "cohesive_ev": 4.0}
        return {"points": points, "eos": vars(eos), "gap_ev": None, "moment": None, **found}

    volumes = np.linspace(250.0, 290.0, 5)
    line = {
        "name": "Si-diamond", "n_atoms": 2, "volumes": volumes.tolist(),
        "deorbitalized": curve(271.0), "parent": curve(270.0),
        **dict.fromkeys(solids.COLUMNS), "d_lattice_constant_angstrom": -0.25,
    }  # fmt: skip
    return {
        "model": "ms2", "parent": "MS2", "split": "test", "crystals": [line],
        "summary": solids.summary([line]),
    }  # fmt: skip


def a_geometry_result() -> dict[str, Any]:
    run = {
        "converged": True, "steps": 2, "bonds_angstrom": [1.0], "angles_degree": [],
        "frequencies_cm": None,
    }  # fmt: skip
    line = {
        "name": "HF", "deorbitalized": run, "parent": {**run, "bonds_angstrom": [1.0625]},
        "bond_angstrom": 0.0625, "angle_degree": None, "frequency_cm": None,
    }  # fmt: skip
    return {
        "model": "ms2", "parent": "MS2", "basis": "def2-svp", "grid_level": 3,
        "fmax_ev_per_angstrom": 0.003, "molecules": [line], "summary": geometry.summary([line]),
    }  # fmt: skip


def a_cells_result() -> dict[str, Any]:
    line = {
        "relaxed_angstrom": 5.5, "eos_angstrom": 5.4375, "difference_angstrom": 0.0625,
        "bulk_modulus_gpa": 90.0,
    }  # fmt: skip
    broken = {"error": "SCF not converged"}
    return {"model": "ms2", "kpts": [2, 2, 2], "crystals": {"Si": line, "MgO": broken}}


def a_limits_result() -> dict[str, Any]:
    error = {"relative": 0.125, "mha_per_electron": 0.25, "mean_alpha": 1.0}
    line = {"at": "Z = 1", "electrons": 1, "errors": dict.fromkeys(limits.SHOWN, error)}
    means = [{"factor": 2.0, "relative": 0.0, "largest_relative": 0.0, "mha_per_electron": 0.0}]
    return {
        "model": "ms2", "parent": "MS2", "uniform_scaling": {"count": 1, "means": means},
        "uniform_gas": {"max_alpha_error": 0.0}, "slabs": [line], "one_electron": [line],
        "stretched": [line],
    }  # fmt: skip


def an_invariance_result() -> dict[str, Any]:
    changes = {"model": dict.fromkeys(invariance.MOVES, 0.0)}
    systems = [{"name": "H2O", "changes_mha": changes}]
    return {"model": "ms2", "grid_level": 1, "systems": systems}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for name, result in (
        ("density", a_density_result()),
        ("scf", an_scf_result()),
        ("reactions", a_reactions_result()),
        ("solids", a_solids_result()),
        ("geometry", a_geometry_result()),
        ("cells", a_cells_result()),
        ("limits", a_limits_result()),
        ("invariance", an_invariance_result()),
        ("xc", {"systems": [1, 2], "summary": {"seconds": 0.875, "<b>": "markup"}}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def page(results: Path, tmp_path: Path) -> Path:
    log = tmp_path / "log.jsonl"
    steps = [{"step": n, "train": {"l1": 1 / n}, "validation": {"l1_mha": 9 / n}} for n in (1, 2)]
    log.write_text("".join(json.dumps(step) + "\n" for step in steps))
    write_report(results, tmp_path / "report.html", [log])
    return tmp_path / "report.html"


def test_everything_is_there_in_its_order(page: Path) -> None:
    html = page.read_text()
    learning = f"Learning curve: {page.parent.name}"
    assert re.findall("<h2>(.*?)</h2>", html) == [escape(h) for h in [*HEADINGS, learning]]
    for expected in (
        "PCopt", "published", "Water_dimer", "0.125", "0.875", "LiF", "Si-diamond", "-0.2500",
        "0.0625", "SCF not converged", "12.5000",
    ):  # fmt: skip
        assert expected in html, expected
    # density: 2 figures, SCF: parity and convergence, reactions, crystals, the learning curve
    assert html.count("<svg") == 7


def test_molecules_and_cells_are_ranked_apart(page: Path) -> None:
    tables = re.findall(
        "<caption>The worst 10: (.*?)</caption>.*?<tbody>(.*?)</tbody>", page.read_text(), re.S
    )
    assert [title for title, _ in tables] == ["molecules and atoms", "crystals, a cell"]
    names = [re.findall("<tr><td>(.*?)</td>", body) for _, body in tables]
    assert names == [["N2", "LiF", "H2"], ["Al-fcc-gth", "Al-fcc"]]


def test_a_result_is_known_by_what_it_says_or_by_its_keys() -> None:
    assert kind_of({"evaluation": "limits", "systems": [], "atoms": []}) == "limits"
    assert kind_of(a_cells_result()) == "cells"
    assert kind_of(a_solids_result()) == "solids"
    assert kind_of({"systems": [{"note": "changes_mha"}]}) == "other"
    assert kind_of({"evaluation": "of a later version"}) == "other"


def test_targets_of_densities() -> None:
    found = {line.measure: line for line in targets.lines("density", a_density_result())}
    energy, l1 = found["|ΔE_x| of molecules"], found["∫|Δe_x| of molecules"]
    assert (energy.figure, energy.comparator) == ("1 mHa", "published 60 mHa")  # means of 1, 2, 3
    assert not energy.met
    assert l1.met
    assert l1.target.startswith("≤ 20 mHa")
    assert found["v_τ of molecules"].target.startswith("≤ 28")  # PCopt's 140
    assert not list(targets.lines("density", a_density_result() | {"split": "validation"}))


def test_targets_of_self_consistent_results() -> None:
    lines = [
        line
        for kind, result in (
            ("scf", an_scf_result()), ("reactions", a_reactions_result()),
            ("solids", a_solids_result()),
        )
        for line in targets.lines(kind, result)
    ]  # fmt: skip
    assert {line.measure: line.met for line in lines} == {
        "atomization energy, self-consistent, mean": True,
        "atomization energy, self-consistent, largest": True,
        "dipole": True,
        "converged, molecules": True,
        "converged, their free atoms": False,
        "median cycles, molecules": True,
        "converged, interactions of S22, def2-svp": True,
        "median cycles, interactions of S22, def2-svp": True,
        "interactions of S22, 1 of them, def2-svp": True,
        "lattice constant of crystals": False,
        "converged, crystals": True,
        "median cycles, crystals": True,
    }


def test_comparators_stand_side_by_side_and_have_no_targets(results: Path, tmp_path: Path) -> None:
    ours, page = write_report(results, tmp_path / "r.html"), tmp_path / "r.html"
    assert "side by side" not in page.read_text() and ours["results"]
    before = page.read_text().count("<td>atomization")
    for make in (an_scf_result, a_reactions_result, a_solids_result):
        result = make() | {"model": "PCopt", "comparator": True}
        if "systems" in result:
            result["summary"]["mean_de_total_mha"] = 73.25
        (results / f"rival-{make.__name__}.json").write_text(json.dumps(result))
    write_report(results, page)
    html = page.read_text()
    assert html.count("<td>atomization") == before
    assert re.search(r"<td>dipole</td>.*?<td>PCopt [\d.]+ D</td>", html)
    assert re.search(r"<td>interactions of S22.*?<td>PCopt [\d.]+ kcal/mol</td>", html)
    assert re.search(r"<td>lattice constant.*?<td>PCopt [\d.]+ Å</td>", html)
    part = html[html.index('<section id="side-by-side"') :]
    tables = re.findall("<tbody>(.*?)</tbody>", part[: part.index("</section>")], re.S)
    rows = [re.findall("<tr><td>(.*?)</td>", body) for body in tables]
    assert rows == [["ms2", "PCopt"]] * 3
    assert "<td>73.2</td>" in tables[0] and "<td>2 of 2</td>" in tables[0]
    assert "<td>1 of s22, def2-svp, level 3</td>" in tables[1] and "<td>5 of 5</td>" in tables[2]


def test_a_curve_without_validation_has_one_panel() -> None:
    figure = learning_curve([{"step": 1, "train": {"l1": 1.0}}], "gda")
    assert [panel.get_title() for panel in figure.axes] == ["gda, train"]


def test_nothing_is_fetched_and_nothing_gets_out_of_its_cell(page: Path) -> None:
    html = page.read_text()
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)|src=", html)
    assert not [x for x in re.findall(r'href="([^"]*)"', html) if not x.startswith("#")]
    assert "&lt;b&gt;" in html and "<b>" not in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_a_browser_shows_it_and_nothing_sticks_out(page: Path, tmp_path: Path) -> None:
    measured = tmp_path / "measured.html"
    script = "document.title = document.documentElement.scrollWidth + ' of ' + innerWidth"
    measured.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", profile]
    options += ["--window-size=1200,1500", "--dump-dom"]

    def opened(url: str) -> subprocess.CompletedProcess[str]:
        command = [str(CHROMIUM), *options, url]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)

    if opened("about:blank").returncode:
        pytest.skip("Chromium is here but does not start")
    dom = opened(measured.as_uri()).stdout
    widths = re.search(r"<title>(\d+) of (\d+)</title>", dom)
    assert widths is not None
    assert int(widths[1]) <= int(widths[2])
    shown = re.findall("<h2>(.*?)</h2>", dom)
    assert [unescape(heading) for heading in shown[:-1]] == HEADINGS


def test_bad_input_is_refused(tmp_path: Path, results: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        write_report(tmp_path / "nowhere", tmp_path / "r.html")
    with pytest.raises(UserError, match="--out"):
        write_report(results, tmp_path / "nowhere" / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.json"):
        write_report(tmp_path / "empty", tmp_path / "r.html")
    (results / "old.json").write_text(json.dumps({"atoms": [], "systems": []}))
    with pytest.raises(UserError, match="another version"):
        write_report(results, tmp_path / "r.html")
    (results / "broken.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        write_report(results, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("formula", "kind", "bonding"),
    [
        ("Na+", "ions", "atoms and monatomic ions"),
        ("Na2", "g2", "metal–metal"),
        ("LiF", "g2", "metal–non-metal"),
        ("Cl2", "g2", "covalent, heavier elements"),
        ("CH4", "g2", "covalent, H to F"),
        ("H4O2", "dimers", "weakly bound"),
        ("CF4", "small", "molecules, def2-SVP"),
        ("C(s)", "crystals", "crystals"),
        ("C(s)", "crystals-gth", "crystals, pseudopotentials"),
        ("Al(s)", "crystals-gth", "crystals, pseudopotentials"),
    ],
)
def test_bonding_kinds(formula: str, kind: str, bonding: str) -> None:
    assert bonding_kind(formula, kind) == bonding


def test_bars_of_elements_are_of_molecules_only() -> None:
    by_element, by_bonding = density_groups(a_density_result()).axes
    rows = [label.get_text() for label in by_element.get_yticklabels()]
    assert rows == ["H (1)", "Li (1)", "N (1)", "F (1)"]
    rows = [label.get_text() for label in by_bonding.get_yticklabels()]
    assert {"crystals (1)", "crystals, pseudopotentials (1)"} < {*rows}
