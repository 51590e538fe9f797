"""Which systems train, which pick a checkpoint, and which are only ever tested.

The split is by chemical formula (an ion's with its charge), so that isomers, spin states, stretched
geometries and iterates of a formula stay together. ``splits.json`` was written by hand, for
diversity, before any training, and what it held then does not change: the test formulas are the
eight systems of the prototype (LiF CO S P2 PH2 CH C2H2 Na2) and others chosen among open shells,
strained rings, aromatics, halides and main-group hydrides, with a few diatomics of the fourth
period. Formulas that joined later train (compounds, transfers, pairs), but for one in ten of the
last two, by chance, which validate.

Crystals, marked ``(s)``, are split by composition: polymorphs, strained volumes and those with
pseudopotentials stay together, and a compound is in the split of the molecule of that composition
(LiF). The eleven test compositions cover metals (Al Mg Cu), covalent (C Si SiC AlP GaAs), ionic
(LiF KF), layered (graphite) and molecular (Ar) crystals.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Literal, cast

from taufree.data.systems import System, registry
from taufree.errors import UserError

Split = Literal["train", "validation", "test"]


@cache
def splits() -> dict[Split, list[str]]:
    """Formulas of each split, from the tracked file."""
    text = files("taufree.data").joinpath("splits.json").read_text("utf-8")
    return cast(dict[Split, list[str]], json.loads(text))


@cache
def _by_formula() -> dict[str, Split]:
    return {formula: split for split, formulas in splits().items() for formula in formulas}


def split_of(formula: str) -> Split:
    """Split of a formula, as `taufree.data.systems.System.formula` writes it.

    Raises
    ------
    UserError
        If the formula is in no split.
    """
    try:
        return _by_formula()[formula]
    except KeyError:
        raise UserError(f"{formula} is in no split; add it to data/splits.json") from None


def systems_of(split: Split) -> list[System]:
    """All registered systems of a split."""
    return [system for system in registry().values() if split_of(system.formula) == split]
