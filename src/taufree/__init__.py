"""taufree: orbital-free surrogates of meta-GGA functionals.

``deorbitalize`` and ``load_model`` are imported on first use, so that ``taufree --help`` does not
wait for PyTorch and PySCF.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taufree.hosts.pyscf import deorbitalize
    from taufree.model.storage import load_model

__all__ = ["deorbitalize", "load_model"]

_HOMES = {"deorbitalize": "taufree.hosts.pyscf", "load_model": "taufree.model.storage"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'taufree' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
