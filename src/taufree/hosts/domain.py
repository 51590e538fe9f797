"""Where a model's errors are known, and where they are not."""

from __future__ import annotations

import warnings
from typing import Any

from ase.data import atomic_numbers

from taufree.errors import DomainWarning
from taufree.functional import Functional


def warn_unseen(functional: Functional, mol: Any) -> None:
    """Warn of elements of a PySCF molecule or cell that the model was not trained on."""
    symbols = {mol.atom_pure_symbol(i) for i in range(mol.natm)}
    unseen = sorted(symbols & {*atomic_numbers} - functional.elements)  # and no ghosts
    if functional.elements and unseen:
        warnings.warn(
            f"{functional.name} was not trained on {', '.join(unseen)}: its errors there are not "
            f"known, so compare with {functional.parent.xc} (--parent) before you rely on it.",
            DomainWarning,
            stacklevel=3,
        )
