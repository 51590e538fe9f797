"""ASE: `TauFree`, a calculator for molecules and crystals."""

from taufree.hosts.ase import TauFree

__all__ = ["TauFree"]
