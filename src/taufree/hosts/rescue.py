"""A ladder of ways to converge a difficult SCF; every step says what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Log = Callable[[str], None]


def converge(mf: Any, guess: Any = None, log: Log = lambda line: None) -> Any:
    """Run an SCF, and climb the ladder while it does not converge.

    Every step starts from the density of the one before and ends in the unshifted, undamped,
    unsmeared functional: what is found is a solution of the SCF equations whichever step found it,
    though where there are several it may be another than the first step was near.

    Parameters
    ----------
    mf : PySCF mean-field object
        It is run; a second-order step hands its orbitals and energy back to it.
    guess : ndarray, optional
        Density matrix to start from, such as that of the last geometry.
    log : callable, optional
        Told in one line what is tried and what came of it.

    Returns
    -------
    The object itself; ``mf.converged`` says whether anything helped.
    """
    mf.kernel(dm0=guess)
    log(_outcome("SCF from the last density" if guess is not None else "SCF", mf))
    for name, step in _ladder(mf, guess is not None):
        if mf.converged:
            break
        try:
            step()
        except NotImplementedError as error:
            log(f"{name}: {error}")
            continue
        log(_outcome(name, mf))
    return mf


def _ladder(mf: Any, had_guess: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    if had_guess:
        yield "fresh initial guess", lambda: _run(mf, None)
    # PySCF damps in the cycles before DIIS starts, and only there
    damped = {"damp": 0.5, "diis_start_cycle": 8, "diis_space": 16}
    yield "damping 0.5 and a longer DIIS space", lambda: _with(mf, **damped)
    yield "level shift 0.3 hartree", lambda: _with(mf, level_shift=0.3, max_cycle=150)
    if not hasattr(mf, "sigma"):  # else the user has chosen one, and second order would freeze it
        yield "smeared occupations first (0.02 hartree)", lambda: _smeared(mf)
        yield "second order (Newton)", lambda: _newton(mf)


def _run(mf: Any, guess: Any) -> None:
    mf.kernel(dm0=guess)


def _with(mf: Any, **options: Any) -> None:
    """With aids until it converges, then without them."""
    usual = {name: getattr(mf, name) for name in options}
    mf.set(**options)
    try:
        mf.kernel(dm0=mf.make_rdm1())
    finally:
        mf.set(**usual)
    if mf.converged:
        mf.kernel(dm0=mf.make_rdm1())


def _smeared(mf: Any) -> None:
    smeared = mf.copy().smearing(sigma=0.02)
    smeared.kernel(dm0=mf.make_rdm1())
    mf.kernel(dm0=np.asarray(smeared.make_rdm1()))


def _newton(mf: Any) -> None:
    second = mf.newton()

    def count(scf: dict[str, Any]) -> None:  # which PySCF does not
        mf.cycles = scf["imacro"] + 1
        if mf.callback:
            mf.callback(scf)

    second.callback = count
    second.kernel(mf.mo_coeff, mf.mo_occ)
    # its orbitals are canonical; DIIS from here might leave what it could not find
    for name in ("mo_coeff", "mo_occ", "mo_energy", "e_tot", "converged"):
        setattr(mf, name, getattr(second, name))


def _outcome(name: str, mf: Any) -> str:
    how = "converged" if mf.converged else "did not converge"
    return f"{name}: {how} in {mf.cycles} cycles, {mf.e_tot:.8f} hartree"
