"""The report: one file, everything in it, readable by a browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from taufree.errors import UserError
from taufree.evaluation import density, reactions, scf
from taufree.evaluation.report import write_report
from taufree.evaluation.report_figures import bonding_kind

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = ("H2", "LiF", "N2")


def a_density_result() -> dict[str, Any]:
    systems = [
        {
            "name": name, "formula": name, "kind": "g2", "n_electrons": 10,
            "errors": {
                row: dict.fromkeys(density.COLUMNS, size * (i + 1))
                for row, size in (("model", 0.5), ("PCopt", 70.0), ("published", 30.0))
            },
        }
        for i, name in enumerate(NAMES)
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
    return {
        "model": "ms2", "potential": "ks", "parent": "MS2", "grid_level": 3,
        "summary": scf.summary(lines), "systems": lines,
        "atoms": [line("H", -0.5), line("N", -54.6)],
    }  # fmt: skip


def a_reactions_result() -> dict[str, Any]:
    line = {
        "name": "Water_dimer", "set": "s22", "energy_kcal": -6.0, "parent_kcal": -6.125,
        "error_kcal": 0.125, "reference_kcal": -5.02,
    }  # fmt: skip
    return {
        "model": "ms2", "parent": "MS2", "basis": "def2-svp", "grid_level": 3,
        "summary": {"s22": reactions._summary([line])}, "reactions": [line], "left_out": [],
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for name, result in (
        ("density", a_density_result()),
        ("scf", an_scf_result()),
        ("reactions", a_reactions_result()),
        ("xc", {"systems": [1, 2], "summary": {"seconds": 0.875, "<b>": "markup"}}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def page(results: Path, tmp_path: Path) -> Path:
    log = tmp_path / "log.jsonl"
    steps = [{"step": n, "train": {"l1": 1 / n}, "validation": {"l1_mha": 9 / n}} for n in (1, 2)]
    log.write_text("".join(json.dumps(step) + "\n" for step in steps))
    found = write_report(results, tmp_path / "report.html", [log])
    assert found["results"] == [f"{n}.json" for n in ("density", "reactions", "scf", "xc")]
    return tmp_path / "report.html"


def test_everything_is_there(page: Path) -> None:
    html = page.read_text()
    for expected in (
        "PCopt", "published", "The worst 10", "Water_dimer", "+0.125", "0.875", "LiF",
        "Learning curve",
    ):  # fmt: skip
        assert expected.removeprefix("+") in html, expected
    # density: 2 figures, reactions: 1, SCF: parity and convergence, the learning curve
    assert html.count("<svg") == 6


def test_nothing_is_fetched_and_nothing_gets_out_of_its_cell(page: Path) -> None:
    html = page.read_text()
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)|src=", html)
    assert not [x for x in re.findall(r'href="([^"]*)"', html) if not x.startswith("#")]
    assert "&lt;b&gt;" in html and "<b>" not in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_it(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1500",
         f"--screenshot={picture}", page.as_uri()],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert picture.stat().st_size > 50_000  # a blank page compresses to some 10 kB


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
    ],
)
def test_bonding_kinds(formula: str, kind: str, bonding: str) -> None:
    assert bonding_kind(formula, kind) == bonding
