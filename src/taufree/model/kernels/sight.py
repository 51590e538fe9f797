"""What the experts see of each point: one pass over memory forward and one backward."""

from __future__ import annotations

import numba
import numpy as np

LARGE = 3.0
"""Size of what a point reads above which it is damped: outside what was learned, bounded."""


@numba.njit(inline="always")
def _axis(local, u):  # type: ignore[no-untyped-def]
    """S_lm of the vector u = ``local[1:]`` for l = 1 and 2, into ``u`` (8,)."""
    x, y, z = local[1], local[2], local[3]
    root3, half = local.dtype.type(1.7320508075688772), local.dtype.type(0.5)
    u[0], u[1], u[2] = x, y, z
    u[3], u[4], u[6] = root3 * x * y, root3 * y * z, root3 * x * z
    u[5], u[7] = z * z - half * (x * x + y * y), half * root3 * (x * x - y * y)


@numba.njit(inline="always")
def _damping(values):  # type: ignore[no-untyped-def]
    """(1 + ⟨values²⟩ / LARGE²)^(−1/2)."""
    one, large = values.dtype.type(1), values.dtype.type(LARGE)
    total = values.dtype.type(0)
    for v in range(len(values)):
        total += values[v] * values[v]
    return one / np.sqrt(one + total / (large * large * max(len(values), 1)))


def _sight_signatures(n_matrices: int, returns: str) -> list[str]:
    matrix = "{t}[:,::1]"
    arguments = ", ".join([matrix] * n_matrices)
    return [f"{returns}({arguments}, i8)".format(t=t) for t in ("f4", "f8")]


@numba.njit(_sight_signatures(2, "{t}[:,::1]"), parallel=True, fastmath=True, cache=True)
def see(local, f, n_directed):  # type: ignore[no-untyped-def]
    """What the experts see of each point: `taufree.model.sight.see_plainly`, in one pass.

    float32 or float64: (n_points, 4), (n_points, n_scalars + 8 n_directed) ->
    (n_points, 2 + n_scalars + 4 n_directed).
    """
    n_scalars = f.shape[1] - 8 * n_directed
    out = np.empty((len(f), 2 + n_scalars + 4 * n_directed), f.dtype)
    for i in numba.prange(len(f)):
        row, point = out[i], f[i]
        u = np.empty(8, f.dtype)
        _axis(local[i], u)
        row[0] = local[i, 0]
        row[1] = u[0] * u[0] + u[1] * u[1] + u[2] * u[2]
        size = _damping(point[:n_scalars])
        for k in range(n_scalars):
            row[2 + k] = point[k] * size
        start, to, m0 = n_scalars, 2 + n_scalars, 0
        for n_m in (3, 5):
            size = _damping(point[start : start + n_m * n_directed])
            along, square = row[to : to + n_directed], row[to + n_directed : to + 2 * n_directed]
            along[:] = 0
            square[:] = 0
            for m in range(n_m):
                for k in range(n_directed):
                    t = point[start + m * n_directed + k] * size
                    along[k] += t * u[m0 + m]
                    square[k] += t * t
            start, to, m0 = start + n_m * n_directed, to + 2 * n_directed, m0 + n_m
    return out


@numba.njit(
    _sight_signatures(3, "Tuple(({t}[:,::1], {t}[:,::1]))"),
    parallel=True,
    fastmath=True,
    cache=True,
)
def see_backward(local, f, d_out, n_directed):  # type: ignore[no-untyped-def]
    """Derivatives by ``local`` and ``f`` of Σ d_out · `see`(local, f)."""
    n_scalars = f.shape[1] - 8 * n_directed
    d_local, d_f = np.empty_like(local), np.empty_like(f)
    zero, two, large = f.dtype.type(0), f.dtype.type(2), f.dtype.type(LARGE)
    root3 = f.dtype.type(1.7320508075688772)
    for i in numba.prange(len(f)):
        row, point, d_point = d_out[i], f[i], d_f[i]
        u, d_u = np.empty(8, f.dtype), np.empty(8, f.dtype)
        _axis(local[i], u)
        size, slope = _damping(point[:n_scalars]), zero
        for k in range(n_scalars):
            slope += row[2 + k] * point[k]
        slope *= size * size * size / (large * large * max(n_scalars, 1))
        for k in range(n_scalars):
            d_point[k] = row[2 + k] * size - slope * point[k]
        start, to, m0 = n_scalars, 2 + n_scalars, 0
        for n_m in (3, 5):
            values = point[start : start + n_m * n_directed]
            d_values = d_point[start : start + n_m * n_directed]
            along, square = row[to : to + n_directed], row[to + n_directed : to + 2 * n_directed]
            size, slope = _damping(values), zero
            for m in range(n_m):
                d_m = zero
                for k in range(n_directed):
                    t = values[m * n_directed + k]
                    through = two * size * square[k] * t
                    d_m += along[k] * t
                    slope += (along[k] * u[m0 + m] + through) * t
                    d_values[m * n_directed + k] = size * (along[k] * u[m0 + m] + through)
                d_u[m0 + m] = size * d_m
            slope *= size * size * size / (large * large * max(len(values), 1))
            for v in range(len(values)):
                d_values[v] -= slope * values[v]
            start, to, m0 = start + n_m * n_directed, to + 2 * n_directed, m0 + n_m
        x, y, z = u[0], u[1], u[2]
        d_local[i, 0] = row[0]
        d_local[i, 1] = d_u[0] + two * x * row[1] - x * d_u[5]
        d_local[i, 2] = d_u[1] + two * y * row[1] - y * d_u[5]
        d_local[i, 3] = d_u[2] + two * z * (row[1] + d_u[5])
        d_local[i, 1] += root3 * (y * d_u[3] + z * d_u[6] + x * d_u[7])
        d_local[i, 2] += root3 * (x * d_u[3] + z * d_u[4] - y * d_u[7])
        d_local[i, 3] += root3 * (y * d_u[4] + x * d_u[6])
    return d_local, d_f
