"""How well E_relax tells where self-consistency leads: molecules of the validation split.

Run: python docs/decisions/0016_relaxation.py DATA [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

import taufree
from taufree.data.generate import converge_parent
from taufree.model.storage import load_model
from taufree.training.relaxation import Molecules, energy_errors


def main() -> None:
    """Print, in mHa, both errors at the parent's density, and those of the SCF beside them."""
    folder, model = Path(sys.argv[1]), load_model(sys.argv[2] if len(sys.argv) > 2 else "ms2")
    molecules = Molecules(folder, "validation", 1, model.network.config.parent)
    print(f"{'':10s} ΔE_x at parent's  −E_relax  |  at parent's  lowering  (level 3)")
    for which in range(len(molecules)):
        molecule = molecules[which]
        errors = energy_errors(model.network, molecule, create_graph=False)
        mf = converge_parent(molecule.system)
        surrogate = taufree.deorbitalize(mf, model)
        dm = mf.make_rdm1()
        start = surrogate.energy_tot(dm)
        end = surrogate.kernel(dm)
        at_parent, relaxation = (1e3 * x.item() for x in errors)
        print(
            f"{molecule.system.name:10s} {at_parent:16.2f} {-relaxation:9.2f}  |"
            f"  {1e3 * (start - mf.e_tot):11.2f} {1e3 * (end - start):9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
