"""The layer that a deorbitalized functional puts over a Kohn-Sham class of PySCF.

PySCF builds its objects from layers (density fitting, solvents, second-order SCF, ...), each a
mixin class. `Deorbitalized` is one more, for molecules and for crystals: it stays with the object
through copies and conversions, it is where forces and response are told what functional they deal
with, and it does not let the integrator be exchanged for one that computes the parent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from pyscf import dft, lib
from pyscf.df.df_jk import _DFHF

from taufree.errors import UnsupportedError

if TYPE_CHECKING:
    from taufree.functional import Functional


def refused(what: str, instead: str) -> Callable[..., NoReturn]:
    """A method that raises `UnsupportedError` and names what works instead."""

    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnsupportedError(f"{what} not available for a deorbitalized functional; {instead}.")

    return method


class Deorbitalized:
    """Mixin over RKS, UKS, ROKS, KRKS, KUKS, density-fitted or not; `deorbitalize` makes it."""

    __name_mixin__ = "Deorbitalized"

    def __init_subclass__(cls) -> None:
        """PySCF's conversions make a class first: those to two components end here."""
        if any(base.__name__.endswith("GKS") for base in cls.__mro__):
            cls.to_gks(cls)

    @property
    def functional(self) -> Functional:
        """The surrogate of the parent's exchange."""
        found: Functional = self._numint.functional
        return found

    @property
    def potential(self) -> str:
        """What `deorbitalize` was told: ks or gks."""
        found: str = self._numint.potential
        return found

    @property
    def _numint(self) -> Any:
        return _checked(self.__dict__["_numint"])

    @_numint.setter
    def _numint(self, integrator: Any) -> None:
        self.__dict__["_numint"] = _checked(integrator)

    def dump_flags(self, verbose: Any = None) -> Any:
        super().dump_flags(verbose)  # type: ignore[misc]
        functional = self.functional
        lib.logger.info(
            self, "Deorbitalized: model %s in place of %s", functional.name, functional.parent.xc
        )
        return self

    def density_fit(self, *args: Any, **kwargs: Any) -> Any:
        """As in PySCF; the deorbitalized layer stays above that of density fitting."""
        fitted = super().density_fit(*args, **kwargs)  # type: ignore[misc]
        fitted.__class__ = layered(lib.drop_class(fitted.__class__, Deorbitalized))
        return fitted

    def to_ks(self, xc: str | None = None) -> Any:
        """A copy; only the parent's name will run as ``xc``."""
        new = self.copy()  # type: ignore[attr-defined]
        new.xc, new.converged = new.xc if xc is None else xc, False
        return new

    to_gks = refused(
        "Non-collinear spin (GKS) is", "use to_uks(), or the parent, dft.GKS(mol, xc=mf.xc)"
    )
    to_gpu = refused("gpu4pyscf is", "the network itself runs on one: load_model('ms2').to('cuda')")
    multigrid_numint = refused(
        "A change to multigrid integration is", "call multigrid_numint() first, then deorbitalize()"
    )
    define_xc_ = refused("define_xc_() is", "call taufree.deorbitalize() with another model")

    def Gradients(self) -> Any:
        """Analytic nuclear gradients: PySCF's for the object's kind, and what the tokens add."""
        from taufree.hosts.gradients import deorbitalized
        from taufree.hosts.pbc_gradients import refuse_unsupported

        if self.potential != "ks":
            raise UnsupportedError(
                f"Forces do not follow from potential={self.potential!r}, which is not the "
                "derivative of the energy; use potential='ks'."
            )
        if hasattr(self, "cell"):
            refuse_unsupported(self)
        return deorbitalized(super().Gradients())  # type: ignore[misc]

    def nuc_grad_method(self) -> Any:
        """`Gradients`, by PySCF's other name."""
        return self.Gradients()

    Hessian = refused(
        "The analytic nuclear Hessian is", "use finite differences of analytic gradients"
    )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what is dressed and dress it again: the class is not in any module."""
        return _dress, (lib.drop_class(type(self), Deorbitalized),), self.__getstate__()


def undressed(mf: Any) -> Any:
    """The object itself or, without the layer, a view of it."""
    cls = type(mf)
    return mf.view(lib.drop_class(cls, Deorbitalized)) if issubclass(cls, Deorbitalized) else mf


def layered(cls: type) -> type:
    """``cls`` with `Deorbitalized` over the Kohn-Sham class and, if any, its density fitting.

    Other layers (solvents, smearing, ...) stay above: they add to energies and forces of what is
    below them.
    """
    if _is_layered(cls):
        layer, inner = cls.__bases__
        if not issubclass(layer, _DFHF) or _is_layered(inner):
            return _class((layer, layered(inner)), cls)
    return _class((Deorbitalized, cls), cls)


def _is_layered(cls: type) -> bool:
    """One of PySCF's layers over a Kohn-Sham class; a Kohn-Sham class is KohnShamDFT over SCF."""
    return len(cls.__bases__) == 2 and issubclass(cls.__bases__[1], dft.rks.KohnShamDFT)


def _class(bases: tuple[type, ...], like: type) -> type:
    cls: type = lib.make_class(bases)
    cls.__module__ = like.__module__
    return cls


def _dress(cls: type) -> Any:
    return object.__new__(layered(cls))


def _checked(integrator: Any) -> Any:
    if not hasattr(integrator, "functional"):
        raise UnsupportedError(
            f"{type(integrator).__name__} would compute the parent, not its surrogate: "
            "start from a Kohn-Sham object of the kind wanted and call taufree.deorbitalize() on it"
        )
    return integrator
