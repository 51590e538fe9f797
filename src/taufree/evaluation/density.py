"""Errors at the parent's own densities: the model and the classic deorbitalizers side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from taufree.comparators.trained import Comparator
from taufree.console import kept, write_json
from taufree.data.reparent import with_parent
from taufree.data.splits import Split, systems_of
from taufree.data.store import (
    Entry,
    ReferenceDensity,
    entries_of,
    load_record,
    manifest_checksum,
    read_manifest,
)
from taufree.data.systems import registry
from taufree.errors import UserError
from taufree.evaluation.errors import MHA, classic_alpha, errors, model_alpha, routing
from taufree.evaluation.thermochemistry import atom, atomization, atoms_of
from taufree.functional import Functional
from taufree.hosts.single_point import KCAL_PER_HARTREE
from taufree.model.storage import fingerprint, load_model, network_fingerprint
from taufree.physics.kinetic import DEORBITALIZERS

MODEL = "model"
"""The model among the deorbitalizers of a result; the others go by their names."""
PROTOTYPE = ("LiF", "CO", "S", "P2", "PH2", "CH", "C2H2", "Na2")
"""Systems with their own mean, for comparison with earlier figures at grid level 1."""
COMPARED = ("all molecules", "prototype", "crystals", "crystals-gth")
"""Groups whose means are shown of every deorbitalizer, not of the model alone."""
SHOWN = 6
"""So many missing systems are named in the table; the result names all."""
KCAL_PER_MHA = KCAL_PER_HARTREE / 1000
COLUMNS = {
    "de_x_mha": ("|ΔE_x|", "mHa"),
    "cycles_mha": ("cycles 1–3", "mHa"),
    "l1_mha": ("∫|Δe_x|", "mHa"),
    "exc_mha": ("ε_x", "mHa"),
    "vrho_mha": ("v_ρ", "mHa"),
    "vsigma_sigma_mha": ("v_σ σ/ρ", "mHa"),
    "vtau": ("v_τ", ""),
    "atomization_kcal": ("|ΔE_at|", "kcal/mol"),
}

CYCLES = ("cycle1", "cycle2", "cycle3")
"""Densities on the way to self-consistency, of molecules."""

Errors = dict[str, dict[str, float]]  # by deorbitalizer, by quantity


def evaluate(
    model: str | Path | Functional,
    data: Path,
    split: Split = "test",
    level: int = 3,
    console: Console | None = None,
    comparators: Sequence[Comparator] = (),
    keep: Path | None = None,
) -> dict[str, Any]:
    """Errors of a model and of every other deorbitalizer at the parent's converged densities.

    Parameters
    ----------
    model : str, Path or Functional
        Name of a bundled model, a path, or a loaded functional.
    data : Path
        Folder of ``taufree data build``.
    split : "train", "validation" or "test"
    level : int
        PySCF grid level of the records.
    console : Console, optional
        Where progress is shown.
    comparators : optional
        Trained networks of others, each a row beside the analytic deorbitalizers.
    keep : Path, optional
        JSON file that takes every finished system: the same evaluation goes on there.

    Returns
    -------
    dict
        ``systems``: a list with ``name``, ``formula``, ``kind``, ``n_electrons`` and ``errors`` of
        each, by deorbitalizer (``model``, ``PCopt``, ...) and quantity, see
        `taufree.evaluation.errors`; a molecule whose free atoms are in the data has
        ``atomization_kcal`` too, the signed error of its atomization energy at fixed densities;
        ``cycles_mha`` is the mean ∣ΔE_x∣ at the densities of SCF cycles 1 to 3, on the coarsest
        grid of the data.
        ``means``: means of the absolute values and their ``count``, over ``all molecules`` (atoms
        among them, those in the ``small`` basis not), those of the ``prototype`` table, and each
        ``kind``. ``routing``: share of the electrons each expert takes, and the most experts active
        at a point. ``missing``: systems of the split that the data lack. ``densities``: the
        functionals that made the densities; the parent's exchange is evaluated at them whatever
        made them. ``atom_grid_levels``: by element, the level of the free atom's record, the finest
        up to ``level``.

    Raises
    ------
    UserError
        The data hold nothing to evaluate, or are damaged.
    """
    functional = load_model(model)
    check_comparators(functional, comparators)
    entries = read_manifest(data)
    chosen = entries_of(data, split)
    settings = {
        "model": fingerprint(functional),
        "comparators": {other.name: network_fingerprint(other.network) for other in comparators},
        "split": split,
        "grid_level": level,
    }
    done = {one["sha256"]: one["found"] for one in kept(keep, settings)}
    for entry in track(chosen, "densities", console=console, disable=console is None):
        if entry.sha256 not in done:
            done[entry.sha256] = _of_entry(functional, comparators, data, entry, level)
            if keep:
                results = [{"sha256": key, "found": found} for key, found in done.items()]
                write_json(keep, {"settings": settings, "results": results})
    found = [one for entry in chosen for one in done[entry.sha256]]
    systems = [one["line"] for one in found]
    if not systems:
        raise UserError(
            f"{data} holds no converged density of the {split} split at grid level {level}: run "
            f"`taufree data build {data} --grid-level {level}`, or choose another level."
        )
    experts = [sum(electrons) for electrons in zip(*(one["experts"] for one in found), strict=True)]
    atom_levels = _add_atomization(functional, comparators, systems, data, entries, level)
    names = {line["name"] for line in systems}
    return {
        "model": functional.name,
        "parent": functional.parent.xc,
        "densities": sorted({one["densities"] for one in found}),
        "split": split,
        "grid_level": level,
        "atom_grid_levels": atom_levels,
        "data": {"folder": data, "checksum": manifest_checksum(entries)},
        "means": _means(systems),
        "routing": {
            "electron_share": [electrons / sum(experts) for electrons in experts],
            "max_active": max(one["max_active"] for one in found),
        },
        "systems": systems,
        "missing": [s.name for s in systems_of(split) if s.name not in names],
    }


def check_comparators(functional: Functional, comparators: Sequence[Comparator]) -> None:
    """Refuse comparators of another parent, and two rows of one name.

    Raises
    ------
    UserError
        For the first such comparator.
    """
    rows = [MODEL, *DEORBITALIZERS]
    for other in comparators:
        if other.parent != functional.parent.xc:
            raise UserError(
                f"{other.name} stands for {other.parent} and {functional.name} for "
                f"{functional.parent.xc}: choose comparators of one parent."
            )
        if other.name in rows:
            raise UserError(f"two rows would be named {other.name}: rename the comparator's file.")
        rows.append(other.name)


def _of_entry(
    functional: Functional, comparators: Sequence[Comparator], data: Path, entry: Entry, level: int
) -> list[dict[str, Any]]:
    """A system's converged densities: one, or a crystal's at each volume."""
    results = []
    for record in load_record(data / entry.file, [level], ["converged"], entry.sha256):
        found, experts, active = _evaluate(functional, record, comparators)
        if on_the_way := load_record(data / entry.file, None, CYCLES, entry.sha256):
            moved = [_evaluate(functional, moving, ())[0] for moving in on_the_way]
            off = {name: [of[name]["de_x_mha"] for of in moved] for name in moved[0]}
            off |= {other.name: _off(other, on_the_way) for other in comparators}
            for name, signed in off.items():
                found[name]["cycles_mha"] = sum(map(abs, signed)) / len(signed)
        results.append(
            {
                "line": _line(record, found),
                "densities": record.parent,
                "experts": experts,
                "max_active": active,
            }
        )
    return results


def _evaluate(
    functional: Functional, record: ReferenceDensity, comparators: Sequence[Comparator]
) -> tuple[Errors, list[float], int]:
    record = with_parent(record, functional.parent.xc)
    alpha, gates = model_alpha(functional, record.density)
    found = {MODEL: errors(record, alpha)} | {
        name: errors(record, classic_alpha(deorbitalizer, record))
        for name, deorbitalizer in DEORBITALIZERS.items()
    }
    found |= {other.name: other.errors(record) for other in comparators}
    return found, *routing(record, gates)


def _off(other: Comparator, records: Iterable[ReferenceDensity]) -> list[float]:
    """Signed ΔE_x (mHa), without partial derivatives."""
    ours = (with_parent(record, other.parent) for record in records)
    return [MHA * (other.exchange_energy(r) - float(r.density.integral(r.exc))) for r in ours]


def _line(record: ReferenceDensity, found: Errors) -> dict[str, Any]:
    return {
        "name": record.name,
        "formula": record.formula,
        "kind": record.kind,
        "n_electrons": record.n_electrons,
        "errors": found,
    }


def _add_atomization(
    functional: Functional,
    comparators: Sequence[Comparator],
    systems: Iterable[dict[str, Any]],
    data: Path,
    entries: dict[str, Entry],
    level: int,
) -> dict[str, int]:
    """Error of the atomization energy for the molecules whose atoms are in the data.

    Atoms of another split may lack the level; the finest below it then has to do, since both
    energies of an error are taken on one grid. Returned is that level by element.
    """
    known = registry()
    compositions = {s["name"]: atoms_of(known[s["name"]]) for s in systems if s["name"] in known}
    of_atoms: dict[str, Errors] = {}
    levels: dict[str, int] = {}
    for symbol in sorted({symbol for atoms in compositions.values() for symbol in atoms}):
        entry = entries.get(atom(symbol).name)
        if entry is None or entry.status != "done":
            continue
        records = load_record(data / entry.file, range(level + 1), ["converged"], entry.sha256)
        if records:
            finest = max(records, key=lambda record: record.grid_level)
            of_atoms[symbol] = _evaluate(functional, finest, comparators)[0]
            levels[symbol] = finest.grid_level
    for line in systems:
        atoms = compositions.get(line["name"])
        if not atoms or not atoms.keys() <= of_atoms.keys():
            continue
        for name, found in line["errors"].items():
            free = {symbol: of_atoms[symbol][name]["de_x_mha"] for symbol in atoms}
            error = atomization(found["de_x_mha"], atoms, free)
            found["atomization_kcal"] = KCAL_PER_MHA * error
    return levels


def _means(systems: list[dict[str, Any]]) -> dict[str, Any]:
    groups = {
        "all molecules": [
            s for s in systems if s["kind"] != "small" and not s["kind"].startswith("crystals")
        ],
        "prototype": [s for s in systems if s["name"] in PROTOTYPE],
    }
    for line in systems:
        groups.setdefault(line["kind"], []).append(line)
    return {
        group: {"count": len(lines), **_mean_absolute([line["errors"] for line in lines])}
        for group, lines in groups.items()
        if lines
    }


def _mean_absolute(found: list[Errors]) -> Errors:
    means: Errors = {}
    for name in found[0]:
        means[name] = {}
        for quantity in COLUMNS:
            values = [abs(e[name][quantity]) for e in found if quantity in e[name]]
            if values:
                means[name][quantity] = sum(values) / len(values)
    return means


def table(result: dict[str, Any]) -> Table:
    """Means of every deorbitalizer, then the model's errors of each system."""
    n = len(result["systems"])
    table = Table(
        title=f"errors of {result['parent']} exchange at {n} {' and '.join(result['densities'])} "
        f"densities of the {result['split']} split, "
        f"grid level {result['grid_level']}; means are of absolute values",
        title_justify="left",
    )
    table.add_column("systems")
    table.add_column("deorbitalizer")
    for name, unit in COLUMNS.values():
        table.add_column(f"{name}\n{unit}", justify="right")
    for group, means in result["means"].items():
        for deorbitalizer, found in means.items():
            if deorbitalizer == "count" or not (deorbitalizer == MODEL or group in COMPARED):
                continue
            label = f"{group} ({means['count']})" if deorbitalizer == MODEL else ""
            table.add_row(label, _label(deorbitalizer, result), *_cells(found))
        table.add_section()
    for line in result["systems"]:
        table.add_row(
            escape(line["name"]), _label(MODEL, result), *_cells(line["errors"][MODEL], sign="+")
        )
    shares = ", ".join(f"{100 * share:.1f}%" for share in result["routing"]["electron_share"])
    active = result["routing"]["max_active"]
    table.caption = f"electrons by expert: {shares}; at most {active} active at a point"
    if coarse := [
        s for s, level in result["atom_grid_levels"].items() if level < result["grid_level"]
    ]:
        table.caption += f"\nfree atoms on coarser grids: {', '.join(coarse)}"
    if missing := result["missing"]:
        listed = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        table.caption += f"\nnot in the data: {len(missing)} of the split ({escape(listed)})"
    return table


def _label(deorbitalizer: str, result: dict[str, Any]) -> str:
    return escape(Path(result["model"]).name or MODEL) if deorbitalizer == MODEL else deorbitalizer


def _cells(found: dict[str, float], sign: str = "") -> list[str]:
    """Numbers of a row; signed ones with their sign where ``sign`` is "+"."""
    signed = ("de_x_mha", "atomization_kcal")
    return [
        f"{found[key]:{sign if key in signed else ''}.{4 if key == 'vtau' else 2}f}"
        if key in found
        else "–"
        for key in COLUMNS
    ]
