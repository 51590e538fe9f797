"""taufree: orbital-free surrogates of meta-GGA functionals."""

from taufree.hosts.pyscf import deorbitalize
from taufree.model.storage import load_model

__all__ = ["deorbitalize", "load_model"]
