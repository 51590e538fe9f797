"""One SCF of each system with a learned comparator, beside MS2: whether and where it converges.

PySCF's defaults (50 cycles, unless fewer are asked for), grid level 1, density fitting; no other
means are tried on free atoms. What OUT.json has is kept.
Run: python docs/decisions/0009_learned.py COMPARATOR OUT.json CYCLES NAME ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from taufree.comparators.integrator import attach
from taufree.comparators.self_consistent import load
from taufree.data.generate import mean_field
from taufree.data.systems import registry

LAST = 20


def run(name: str, rival: Any, cycles: int) -> dict[str, Any]:
    """Whether it converged, in how many cycles, and the total energy of each, Ha."""
    mf = mean_field(registry()[name])
    mf.grids.level, mf.max_cycle = 1, cycles
    if rival is not None:
        mf = attach(mf, rival)
    mf.with_df.build()
    energies: list[float] = []
    mf.callback = lambda scf: energies.append(float(scf["e_tot"]))
    mf.kernel()
    return {"converged": bool(mf.converged), "cycles": int(mf.cycles), "energies": energies}


def main(comparator: str, out: str, cycles: str, *names: str) -> None:
    """Print a line a system."""
    path = Path(out)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    rival = load(comparator)
    for name in names:
        if name not in results:
            results[name] = {
                "comparator": run(name, rival, int(cycles)),
                "parent": run(name, None, 50),
            }
            path.write_text(json.dumps(results, indent=1))
        ours, parent = results[name]["comparator"], results[name]["parent"]
        energies, reference = ours["energies"], parent["energies"][-1]
        how = "converged" if ours["converged"] else "not converged"
        wander = max(energies[-LAST:]) - min(energies[-LAST:])
        print(
            f"{name}: {how} in {ours['cycles']} cycles (MS2 {parent['cycles']}); E - E(MS2) "
            f"{1e3 * (energies[-1] - reference):.2f} mHa, in the last {LAST} cycles by "
            f"{1e3 * wander:.3f} mHa",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
