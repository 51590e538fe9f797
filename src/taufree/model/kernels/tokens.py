"""Attention between points and tokens, features and contraction fused in cache.

A tile of points makes the features of one token (12 kB), uses them at once and forgets them, so
nothing of size points × tokens is ever stored.
"""

from __future__ import annotations

import numba
import numpy as np

from taufree.model.kernels import CHUNK, TILE

NEGLIGIBLE = 1e-20
"""Smaller Gaussians are zero: subnormal numbers would be a hundred times slower."""


@numba.njit(inline="always")
def _features(points, position, a0, n_radial, scale, cutoff, phi):  # type: ignore[no-untyped-def]
    """Φ (n_features, TILE) of one token at ``position`` for ``points`` (3, TILE)."""
    x = np.empty(TILE, phi.dtype)
    y = np.empty(TILE, phi.dtype)
    z = np.empty(TILE, phi.dtype)
    fade = np.empty(TILE, np.float64)
    power = np.empty(TILE, np.float64)
    for i in range(TILE):
        dx = points[0, i] - position[0]
        dy = points[1, i] - position[1]
        dz = points[2, i] - position[2]
        x[i], y[i], z[i] = dx, dy, dz
        d2 = dx * dx + dy * dy + dz * dz
        c = max(1.0 - d2 / (cutoff * cutoff), 0.0)
        fade[i] = c * c * c
        # exp(−a0 d²) by the Taylor series of its 64th root, to 1e-15
        t = -a0 * min(d2, cutoff * cutoff) / 64
        e = 1.0
        for k in (8, 7, 6, 5, 4, 3, 2, 1):
            e = 1.0 + t / k * e
        for _ in range(6):
            e = e * e
        power[i] = e
    n0, n1, n2 = n_radial
    for n in range(n0):  # each exponent is twice the last: its Gaussian is the square
        for i in range(TILE):
            g = power[i] * fade[i]
            phi[n, i] = g if g > NEGLIGIBLE else 0.0
            power[i] = power[i] * power[i]
    f = n0
    for n in range(n1):
        s = scale[1, n]
        for i in range(TILE):
            g = phi[n, i] * s
            phi[f, i] = g * x[i]
            phi[f + 1, i] = g * y[i]
            phi[f + 2, i] = g * z[i]
        f += 3
    root3 = phi.dtype.type(1.7320508075688772)
    half = phi.dtype.type(0.5)
    for n in range(n2):
        s = scale[2, n]
        for i in range(TILE):
            g = phi[n, i] * s
            gr = g * root3
            phi[f, i] = gr * x[i] * y[i]
            phi[f + 1, i] = gr * y[i] * z[i]
            phi[f + 2, i] = g * (z[i] * z[i] - half * (x[i] * x[i] + y[i] * y[i]))
            phi[f + 3, i] = gr * x[i] * z[i]
            phi[f + 4, i] = gr * half * (x[i] * x[i] - y[i] * y[i])
        f += 5


@numba.njit(fastmath=True)
def _add_product(z, phi, f):  # type: ignore[no-untyped-def]
    """f += zᵀ φ: (n_features, n_channels), (n_features, TILE), (n_channels, TILE)."""
    n_features, n_channels = z.shape
    whole = n_features - n_features % 4
    for n in range(0, whole, 4):
        for k in range(n_channels):
            z0, z1, z2, z3 = z[n, k], z[n + 1, k], z[n + 2, k], z[n + 3, k]
            for i in range(TILE):
                f[k, i] += (z0 * phi[n, i] + z1 * phi[n + 1, i]) + (
                    z2 * phi[n + 2, i] + z3 * phi[n + 3, i]
                )
    for n in range(whole, n_features):
        for k in range(n_channels):
            for i in range(TILE):
                f[k, i] += z[n, k] * phi[n, i]


@numba.njit(fastmath=True)
def _add_inner(phi, x, c):  # type: ignore[no-untyped-def]
    """c += φ xᵀ: (n_features, TILE), (n_values, TILE), (n_features, n_values); 2 × 4 at a time."""
    n_features, n_values = c.shape
    four = n_values - n_values % 4
    for n in range(n_features):
        for v in range(0, four, 4):
            s0 = s1 = s2 = s3 = phi.dtype.type(0.0)
            for i in range(TILE):
                p = phi[n, i]
                s0 += p * x[v, i]
                s1 += p * x[v + 1, i]
                s2 += p * x[v + 2, i]
                s3 += p * x[v + 3, i]
            c[n, v] += s0
            c[n, v + 1] += s1
            c[n, v + 2] += s2
            c[n, v + 3] += s3
        for v in range(four, n_values):
            s0 = phi.dtype.type(0.0)
            for i in range(TILE):
                s0 += phi[n, i] * x[v, i]
            c[n, v] += s0


@numba.njit(fastmath=True)
def _add_tensors(y, phi, n_radial, f):  # type: ignore[no-untyped-def]
    """f[l, m, k] += Σ_n y[l, n, k] φ[n, l, m] for l = 1, 2; f (8 n_directed, TILE)."""
    n_directed = y.shape[1]
    feature, radial, row = n_radial[0], 0, 0
    for l in (1, 2):
        for n in range(n_radial[l]):
            for m in range(2 * l + 1):
                for k in range(n_directed):
                    value, out = y[radial + n, k], row + m * n_directed + k
                    for i in range(TILE):
                        f[out, i] += value * phi[feature + m, i]
            feature += 2 * l + 1
        radial += n_radial[l]
        row += (2 * l + 1) * n_directed


@numba.njit(fastmath=True)
def _add_tensor_inner(phi, x, n_radial, c):  # type: ignore[no-untyped-def]
    """c[l, n, k] += Σ_m φ[n, l, m] x[l, m, k]: the transpose of `_add_tensors`."""
    n_directed = c.shape[1]
    feature, radial, row = n_radial[0], 0, 0
    for l in (1, 2):
        for n in range(n_radial[l]):
            for m in range(2 * l + 1):
                start = row + m * n_directed
                one = phi[feature + m : feature + m + 1]
                _add_inner(one, x[start : start + n_directed], c[radial + n : radial + n + 1])
            feature += 2 * l + 1
        radial += n_radial[l]
        row += (2 * l + 1) * n_directed


def _signatures(*last: str) -> list[str]:
    """Compiled for these when first imported, and kept: no calculation waits for the compiler."""
    common = "(f8[:,:,::1], i8[::1], i8[::1], f8[:,::1], f8, UniTuple(i8, 3), "
    return [f"{common}{t}[:,::1], f8, {', '.join(last).format(t=t)})" for t in ("f4", "f8")]


@numba.njit(_signatures("{t}[:,:,::1]", "{t}[:,:,::1]"), parallel=True, fastmath=True, cache=True)
def scatter(  # type: ignore[no-untyped-def]
    points, pointer, token, position, a0, n_radial, scale, cutoff, z, y
):
    """f = Φ (z, y) for some tiles.

    Parameters
    ----------
    points : float64, (n_tiles, 3, TILE)
    pointer : int64, (n_tiles + 1,)
        Pairs ``pointer[t]:pointer[t + 1]`` of ``token`` and ``position`` belong to tile t.
    token : int64, (n_pairs,)
    position : float64, (n_pairs, 3)
    z : float32 or float64, (n_tokens, n_features, n_scalars)
        Its precision is that of features and sums.
    y : like z, (n_tokens, n_tensor_features, n_directed)

    Returns
    -------
    (n_tiles, n_scalars + 8 n_directed, TILE), of the type of z
    """
    n_tiles, (_, n_features, n_scalars) = len(points), z.shape
    n_channels = n_scalars + 8 * y.shape[2]
    out = np.empty((n_tiles, n_channels, TILE), z.dtype)
    for tile in numba.prange(n_tiles):
        phi = np.empty((n_features, TILE), z.dtype)
        f = np.zeros((n_channels, TILE), z.dtype)
        for pair in range(pointer[tile], pointer[tile + 1]):
            _features(points[tile], position[pair], a0, n_radial, scale, cutoff, phi)
            _add_product(z[token[pair]], phi, f[:n_scalars])
            _add_tensors(y[token[pair]], phi, n_radial, f[n_scalars:])
        out[tile] = f
    return out


@numba.njit(_signatures("{t}[:,:,::1]", "i8", "i8"), parallel=True, fastmath=True, cache=True)
def gather(  # type: ignore[no-untyped-def]
    points, pointer, token, position, a0, n_radial, scale, cutoff, x, n_directed, n_tokens
):
    """Φᵀ x over some tiles; x (n_tiles, n_scalars + 8 n_directed, TILE), others as in `scatter`.

    Returns
    -------
    float64, (n_tokens, n_features, n_scalars) and (n_tokens, n_tensor_features, n_directed)
    """
    n_tiles, n_scalars = len(x), x.shape[1] - 8 * n_directed
    n0, n1, n2 = n_radial
    n_features = n0 + 3 * n1 + 5 * n2
    n_chunks = -(-n_tiles // CHUNK)
    parts = np.zeros((n_chunks, n_tokens, n_features, n_scalars), np.float64)
    tensors = np.zeros((n_chunks, n_tokens, n1 + n2, n_directed), np.float64)
    for chunk in numba.prange(n_chunks):
        phi = np.empty((n_features, TILE), x.dtype)
        for tile in range(chunk * CHUNK, min((chunk + 1) * CHUNK, n_tiles)):
            values = x[tile]
            for pair in range(pointer[tile], pointer[tile + 1]):
                _features(points[tile], position[pair], a0, n_radial, scale, cutoff, phi)
                _add_inner(phi, values[:n_scalars], parts[chunk, token[pair]])
                part = tensors[chunk, token[pair]]
                _add_tensor_inner(phi, values[n_scalars:], n_radial, part)
    return parts.sum(0), tensors.sum(0)
