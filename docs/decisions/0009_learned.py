"""One SCF of each system with a learned comparator, beside MS2: whether and where it converges.

PySCF's defaults, grid level 1, density fitting; no other means are tried on free atoms.
Run: python docs/decisions/0009_learned.py COMPARATOR OUT.json NAME ... (what OUT.json has is kept)
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
from taufree.evaluation.thermochemistry import atom

LAST = 20


def run(name: str, rival: Any) -> list[float]:
    """Total energy of each cycle, Ha; ends with the converged one, or PySCF's fiftieth."""
    mf = mean_field(registry().get(name) or atom(name))
    mf.grids.level = 1
    if rival is not None:
        mf = attach(mf, rival)
    mf.with_df.build()
    energies: list[float] = []
    mf.callback = lambda scf: energies.append(float(scf["e_tot"]))
    mf.kernel()
    return [*energies, float(mf.e_tot)] if mf.converged else energies


def main(comparator: str, out: str, *names: str) -> None:
    """Print a line a system; a cycle more than the maximum says that it converged."""
    path = Path(out)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    rival = load(comparator)
    for name in names:
        if name not in results:
            results[name] = {"comparator": run(name, rival), "parent": run(name, None)}
            path.write_text(json.dumps(results, indent=1))
        ours, parent = results[name]["comparator"], results[name]["parent"]
        how = "not converged" if len(ours) == 50 else f"converged in {len(ours) - 1} cycles"
        spread = max(ours[-LAST:]) - min(ours[-LAST:])
        print(
            f"{name}: {how}; E - E(MS2) {1e3 * (ours[-1] - parent[-1]):.2f} mHa, "
            f"in the last {LAST} cycles by {1e3 * spread:.3f} mHa",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
