"""Averages of the density around each point, and what the experts see of them."""

from __future__ import annotations

import numba
import numpy as np

from taufree.model.kernels import CHUNK, TILE


@numba.njit(inline="always")
def exp(t):  # type: ignore[no-untyped-def]
    """exp(t) for −60 ≤ t ≤ 0 by the Taylor series of its 64th root."""
    t = t / 64
    e = 1.0
    for k in (9, 8, 7, 6, 5, 4, 3, 2, 1):
        e = 1.0 + t / k * e
    for _ in range(6):
        e = e * e
    return e


@numba.njit(inline="always")
def near(points, position, cutoff, r, square, fade):  # type: ignore[no-untyped-def]
    """Displacements r (3, TILE) from ``position``, their squares, and C(d)."""
    for i in range(TILE):
        for k in range(3):
            r[k, i] = points[k, i] - position[k]
        square[i] = r[0, i] * r[0, i] + r[1, i] * r[1, i] + r[2, i] * r[2, i]
        c = max(1.0 - square[i] / (cutoff * cutoff), 0.0)
        fade[i] = c * c * c


@numba.njit(inline="always")
def moments(q, n, n_radial, a):  # type: ignore[no-untyped-def]
    """Of the n-th Gaussian: q₀, √a q₁ (3) and a q₂ as T (xx, yy, zz, xy, yz, xz), q₂·S₂ = rᵀTr."""
    n0, n1, n2 = n_radial
    half_root3 = 0.8660254037844386
    v = (0.0, 0.0, 0.0)
    t = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if n < n1:
        f, size = n0 + 3 * n, np.sqrt(a)
        v = (size * q[f], size * q[f + 1], size * q[f + 2])
    if n < n2:
        f = n0 + 3 * n1 + 5 * n
        side = half_root3 * a
        along, across = a * q[f + 2], side * q[f + 4]
        t = (
            across - along / 2,
            -across - along / 2,
            along,
            side * q[f],
            side * q[f + 1],
            side * q[f + 3],
        )
    return q[n], v, t


@numba.njit(inline="always")
def turned(t, x, y, z):  # type: ignore[no-untyped-def]
    """T r of a `moments` tensor."""
    return (
        t[0] * x + t[3] * y + t[5] * z,
        t[3] * x + t[1] * y + t[4] * z,
        t[5] * x + t[4] * y + t[2] * z,
    )


_AVERAGE = (
    "f8[:,:,::1], i8[::1], i8[::1], f8[:,::1], f8, UniTuple(i8, 3), f8, f8[:,:,::1], f8[:,::1]"
)


@numba.njit([f"f8[:,:,::1]({_AVERAGE})"], parallel=True, fastmath=True, cache=True)
def average(  # type: ignore[no-untyped-def]
    points, pointer, token, position, a0, n_radial, cutoff, b, q
):
    """Density in Gaussians, averaged with kernels of exponent b: ρ̄ and ∇ρ̄ at the points of tiles.

    Parameters
    ----------
    points, pointer, token, position
        As in `taufree.model.kernels.tokens.scatter`.
    b : float64, (n_tiles, n_heads, TILE)
    q : float64, (n_tokens, n_features)

    Returns
    -------
    (n_tiles, 4 n_heads, TILE)
    """
    n_tiles, n_heads, _ = b.shape
    out = np.zeros((n_tiles, 4 * n_heads, TILE))
    for tile in numba.prange(n_tiles):
        r = np.empty((3, TILE))
        square = np.empty(TILE)
        fade = np.empty(TILE)
        for pair in range(pointer[tile], pointer[tile + 1]):
            near(points[tile], position[pair], cutoff, r, square, fade)
            for n in range(n_radial[0]):
                a = a0 * 2.0**n
                q0, v, t = moments(q[token[pair]], n, n_radial, a)
                for head in range(n_heads):
                    o = out[tile, 4 * head : 4 * head + 4]
                    for i in range(TILE):
                        x, y, z = r[0, i], r[1, i], r[2, i]
                        w = b[tile, head, i] / (a + b[tile, head, i])
                        k = a * w
                        e = exp(-min(k * square[i], 60.0)) * w * np.sqrt(w) * fade[i]
                        tx, ty, tz = turned(t, x, y, z)
                        first = v[0] * x + v[1] * y + v[2] * z
                        second = tx * x + ty * y + tz * z
                        s = q0 + w * (first + w * second)
                        o[0, i] += e * s
                        o[1, i] += e * (w * (v[0] + 2 * w * tx) - 2 * k * s * x)
                        o[2, i] += e * (w * (v[1] + 2 * w * ty) - 2 * k * s * y)
                        o[3, i] += e * (w * (v[2] + 2 * w * tz) - 2 * k * s * z)
    return out


@numba.njit(
    [f"Tuple((f8[:,::1], f8[:,:,::1]))({_AVERAGE}, f8[:,:,::1])"],
    parallel=True,
    fastmath=True,
    cache=True,
)
def average_backward(  # type: ignore[no-untyped-def]
    points, pointer, token, position, a0, n_radial, cutoff, b, q, d_out
):
    """Derivatives by q and b of Σ d_out · `average`(..., b, q)."""
    n_tiles, n_heads, _ = b.shape
    n0, n1, n2 = n_radial
    root3 = 1.7320508075688772
    n_chunks = -(-n_tiles // CHUNK)
    parts = np.zeros((n_chunks, len(q), q.shape[1]))
    d_b = np.zeros_like(b)
    for chunk in numba.prange(n_chunks):
        r = np.empty((3, TILE))
        square = np.empty(TILE)
        fade = np.empty(TILE)
        for tile in range(chunk * CHUNK, min((chunk + 1) * CHUNK, n_tiles)):
            for pair in range(pointer[tile], pointer[tile + 1]):
                near(points[tile], position[pair], cutoff, r, square, fade)
                d_q = parts[chunk, token[pair]]
                for n in range(n0):
                    a = a0 * 2.0**n
                    q0, v, t = moments(q[token[pair]], n, n_radial, a)
                    s0 = sx = sy = sz = sxx = syy = szz = sxy = syz = sxz = 0.0
                    for head in range(n_heads):
                        g = d_out[tile, 4 * head : 4 * head + 4]
                        for i in range(TILE):
                            x, y, z = r[0, i], r[1, i], r[2, i]
                            gx, gy, gz = g[1, i], g[2, i], g[3, i]
                            width = b[tile, head, i]
                            w = width / (a + width)
                            k = a * w
                            e = exp(-min(k * square[i], 60.0)) * w * np.sqrt(w) * fade[i]
                            g_r = gx * x + gy * y + gz * z
                            through = g[0, i] - 2 * k * g_r
                            s0 += e * through
                            ew = e * w
                            sx += ew * (through * x + gx)
                            sy += ew * (through * y + gy)
                            sz += ew * (through * z + gz)
                            eww = ew * w
                            # rᵀTr through + 2 gᵀTr by T
                            sxx += eww * (through * x * x + 2 * gx * x)
                            syy += eww * (through * y * y + 2 * gy * y)
                            szz += eww * (through * z * z + 2 * gz * z)
                            sxy += eww * (through * x * y + gx * y + gy * x)
                            syz += eww * (through * y * z + gy * z + gz * y)
                            sxz += eww * (through * x * z + gx * z + gz * x)
                            tx, ty, tz = turned(t, x, y, z)
                            first = v[0] * x + v[1] * y + v[2] * z
                            second = tx * x + ty * y + tz * z
                            s = q0 + w * (first + w * second)
                            g_v = gx * v[0] + gy * v[1] + gz * v[2]
                            g_t = 2 * (gx * tx + gy * ty + gz * tz)
                            value = s * through + w * (g_v + w * g_t)
                            by_w = (1.5 / w - a * square[i]) * value
                            by_w += (first + 2 * w * second) * through
                            by_w += g_v + 2 * w * g_t - 2 * a * s * g_r
                            d_b[tile, head, i] += e * by_w * w * (1 - w) / width
                    d_q[n] += s0
                    if n < n1:
                        f, size = n0 + 3 * n, np.sqrt(a)
                        d_q[f] += size * sx
                        d_q[f + 1] += size * sy
                        d_q[f + 2] += size * sz
                    if n < n2:
                        f = n0 + 3 * n1 + 5 * n
                        d_q[f] += root3 * a * sxy
                        d_q[f + 1] += root3 * a * syz
                        d_q[f + 2] += a * (szz - (sxx + syy) / 2)
                        d_q[f + 3] += root3 * a * sxz
                        d_q[f + 4] += root3 / 2 * a * (sxx - syy)
    return parts.sum(0), d_b


@numba.njit("f8[:,::1](f8[:,::1], f8[::1], f8[:,::1], f8[:,::1], f8)", parallel=True, cache=True)
def see_averages(average, rho, u, b, soft):  # type: ignore[no-untyped-def]
    """What the experts see of averages: `taufree.model.averages.see_averages_plainly`, at once."""
    n_heads = b.shape[1]
    out = np.empty((len(rho), 3 * n_heads))
    for i in numba.prange(len(rho)):
        for h in range(n_heads):
            m = average[i, 4 * h] / rho[i]
            log_ratio = np.arcsinh(m / soft) - np.arcsinh(1 / soft)
            size = 1 / (2 * np.sqrt(b[i, h]) * rho[i] * np.exp(log_ratio))
            along = square = 0.0
            for k in range(3):
                dipole = average[i, 4 * h + 1 + k] * size
                along += dipole * u[i, k]
                square += dipole * dipole
            out[i, h] = log_ratio
            out[i, n_heads + h] = along / np.sqrt(1 + square)
            out[i, 2 * n_heads + h] = square / (1 + square)
    return out


@numba.njit(
    "Tuple((f8[:,::1], f8[::1], f8[:,::1], f8[:,::1]))"
    "(f8[:,::1], f8[::1], f8[:,::1], f8[:,::1], f8, f8[:,::1])",
    parallel=True,
    cache=True,
)
def see_averages_backward(average, rho, u, b, soft, d_out):  # type: ignore[no-untyped-def]
    """Derivatives by ``average``, ``rho``, ``u`` and ``b`` of Σ d_out · `see_averages`."""
    n_heads = b.shape[1]
    d_average, d_rho = np.empty_like(average), np.zeros_like(rho)
    d_u, d_b = np.zeros_like(u), np.empty_like(b)
    for i in numba.prange(len(rho)):
        for h in range(n_heads):
            m = average[i, 4 * h] / rho[i]
            root = np.sqrt(m * m + soft * soft)
            ratio = np.exp(np.arcsinh(m / soft) - np.arcsinh(1 / soft))
            size = 1 / (2 * np.sqrt(b[i, h]) * rho[i] * ratio)
            along = square = by_size = 0.0
            for k in range(3):
                dipole = average[i, 4 * h + 1 + k] * size
                along += dipole * u[i, k]
                square += dipole * dipole
            damping = 1 / np.sqrt(1 + square)
            d_along = d_out[i, n_heads + h] * damping
            d_square = d_out[i, 2 * n_heads + h] * damping**4 - d_along * along * damping**2 / 2
            for k in range(3):
                dipole = average[i, 4 * h + 1 + k] * size
                d_dipole = d_along * u[i, k] + 2 * d_square * dipole
                d_u[i, k] += d_along * dipole
                d_average[i, 4 * h + 1 + k] = d_dipole * size
                by_size += d_dipole * dipole
            d_m = (d_out[i, h] - by_size) / root
            d_average[i, 4 * h] = d_m / rho[i]
            d_rho[i] -= (d_m * m + by_size) / rho[i]
            d_b[i, h] = -by_size / (2 * b[i, h])
    return d_average, d_rho, d_u, d_b
