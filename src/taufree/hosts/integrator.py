"""What every numerical integrator of PySCF shares when the surrogate takes libxc's place."""

from __future__ import annotations

from typing import Any, NoReturn

from taufree.errors import UnsupportedError, UserError
from taufree.functional import Functional
from taufree.hosts.exchange_correlation import same_xc

PERIODIC_PARENT = "pbc.dft.KRKS(cell, kpts, xc={xc!r})"


class Deorbitalizing:
    """Mixin before an integrator class of PySCF: looks like a GGA, refuses what it cannot give."""

    functional: Functional
    potential: str = "ks"
    _cache: Any = None
    parent_call = "dft.RKS(mol, xc={xc!r})"
    """What a user writes to get the parent."""

    def check(self, xc_code: str) -> None:
        """Raise `UserError` when another functional is asked for than this one stands for."""
        parent = self.functional.parent.xc
        if not same_xc(xc_code, parent):
            raise UserError(
                f"xc was changed to {xc_code!r} on a deorbitalized object, which stands for "
                f"{parent}: make a new object for another functional."
            )

    def _xc_type(self, xc_code: str) -> str:
        return "GGA"  # what the potential looks like from outside: no τ

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        parent = self.parent_call.format(xc=self.functional.parent.xc)
        raise UnsupportedError(
            "This needs derivatives that are not available for a deorbitalized functional; "
            f"run it with the parent, {parent}."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_cache": None}  # type: ignore[dict-item]

    def reset(self, mol: Any = None) -> Any:
        """Forget orbital values and neighbour lists; PySCF calls this for a new geometry."""
        self._cache = None
        return super().reset(mol)  # type: ignore[misc]

    eval_xc = eval_xc1 = eval_xc_eff = _refuse
    nr_nlc_vxc = get_veff_ip1 = _refuse
    # `Responding` has these for molecules
    nr_rks_fxc: Any = _refuse
    nr_uks_fxc: Any = _refuse
    nr_rks_fxc_st: Any = _refuse
    nr_fxc: Any = _refuse
    get_fxc: Any = _refuse
    cache_xc_kernel: Any = _refuse
    cache_xc_kernel1: Any = _refuse
