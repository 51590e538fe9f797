"""What moving points, tokens or the cell does to what points read and average."""

from __future__ import annotations

import numba
import numpy as np

from taufree.model.kernels import CHUNK, TILE
from taufree.model.kernels.averages import exp, moments, near, turned
from taufree.model.kernels.tokens import NEGLIGIBLE


@numba.njit(fastmath=True)
def _by_feature(x, z, y, n_radial, out):  # type: ignore[no-untyped-def]
    """∂/∂Φ of Σ x Φ (z, y) of one token, into ``out`` (TILE, n_features)."""
    n_features, n_scalars = z.shape
    n_directed = y.shape[1]
    for i in range(TILE):
        for f in range(n_features):
            total = 0.0
            for k in range(n_scalars):
                total += z[f, k] * x[k, i]
            out[i, f] = total
    feature, radial, row = n_radial[0], 0, n_scalars
    for l in (1, 2):
        for n in range(n_radial[l]):
            for m in range(2 * l + 1):
                for k in range(n_directed):
                    value, channel = y[radial + n, k], row + m * n_directed + k
                    for i in range(TILE):
                        out[i, feature + m] += value * x[channel, i]
            feature += 2 * l + 1
        radial += n_radial[l]
        row += (2 * l + 1) * n_directed


@numba.njit(fastmath=True)
def _move_features(by_feature, r, square, a0, n_radial, cutoff, d_r):  # type: ignore[no-untyped-def]
    """d_r += Σ ``by_feature`` ∂Φ/∂r, (3, TILE)."""
    for i in range(TILE):
        x, y, z = r[0, i], r[1, i], r[2, i]
        u = max(1.0 - square[i] / (cutoff * cutoff), 0.0)
        fade, d_fade = u * u * u, -6 * u * u / (cutoff * cutoff)
        e = exp(-min(a0 * square[i], 60.0))
        for n in range(n_radial[0]):
            a = a0 * 2.0**n
            q0, v, t = moments(by_feature[i], n, n_radial, a)
            tx, ty, tz = turned(t, x, y, z)
            value = q0 + (v[0] + tx) * x + (v[1] + ty) * y + (v[2] + tz) * z
            along, g = e * (d_fade - 2 * a * fade) * value, e * fade
            d_r[0, i] += along * x + g * (v[0] + 2 * tx)
            d_r[1, i] += along * y + g * (v[1] + 2 * ty)
            d_r[2, i] += along * z + g * (v[2] + 2 * tz)
            e = e * e if e > NEGLIGIBLE else 0.0


@numba.njit(fastmath=True)
def _move_averages(d_average, r, square, fade, b, q, a0, n_radial, cutoff, d_r):  # type: ignore[no-untyped-def]
    """d_r += Σ ``d_average`` ∂ρ̄/∂r of one token's coefficients q, (3, TILE)."""
    for n in range(n_radial[0]):
        a = a0 * 2.0**n
        q0, v, t = moments(q, n, n_radial, a)
        for head in range(len(b)):
            g = d_average[4 * head : 4 * head + 4]
            for i in range(TILE):
                x, y, z = r[0, i], r[1, i], r[2, i]
                gx, gy, gz = g[1, i], g[2, i], g[3, i]
                w = b[head, i] / (a + b[head, i])
                k = a * w
                bare = exp(-min(k * square[i], 60.0)) * w * np.sqrt(w)
                e = bare * fade[i]
                u = max(1.0 - square[i] / (cutoff * cutoff), 0.0)
                tx, ty, tz = turned(t, x, y, z)
                s = q0 + w * (v[0] + w * tx) * x + w * (v[1] + w * ty) * y + w * (v[2] + w * tz) * z
                through = g[0, i] - 2 * k * (gx * x + gy * y + gz * z)
                straight = gx * (v[0] + 2 * w * tx) + gy * (v[1] + 2 * w * ty)
                straight += gz * (v[2] + 2 * w * tz)
                value = s * through + w * straight
                along = -(6 * u * u / (cutoff * cutoff) * bare + 2 * k * e) * value
                ew, eww, eks = e * w * through, 2 * e * w * w, 2 * e * k * s
                sx, sy, sz = turned(t, gx, gy, gz)
                d_r[0, i] += along * x + ew * (v[0] + 2 * w * tx) + eww * sx - eks * gx
                d_r[1, i] += along * y + ew * (v[1] + 2 * w * ty) + eww * sy - eks * gy
                d_r[2, i] += along * z + ew * (v[2] + 2 * w * tz) + eww * sz - eks * gz


@numba.njit(
    "Tuple((f8[:,:,::1], f8[:,::1], f8[:,::1]))(f8[:,:,::1], i8[::1], i8[::1], f8[:,::1], f8, "
    "UniTuple(i8, 3), f8, f8[:,:,::1], f8[:,:,::1], f8[:,:,::1], f8[:,:,::1], f8[:,::1], "
    "f8[:,:,::1])",
    parallel=True,
    fastmath=True,
    cache=True,
)
def displace(  # type: ignore[no-untyped-def]
    points, pointer, token, position, a0, n_radial, cutoff, x, z, y, b, q, d_average
):
    """Derivatives of Σ x Φ (z, y) + Σ d_average ρ̄ by points, tokens and strain, for some tiles.

    Parameters
    ----------
    points, pointer, token, position, z, y
        As in `taufree.model.kernels.tokens.scatter`.
    x : float64, (n_tiles, n_scalars + 8 n_directed, TILE)
    b, q, d_average
        As in `taufree.model.kernels.averages.average_backward`.

    Returns
    -------
    (n_tiles, 3, TILE), (n_tokens, 3) and (3, 3)
    """
    n_tiles, n_chunks = len(x), -(-len(x) // CHUNK)
    out = np.zeros((n_tiles, 3, TILE))
    tokens, strains = np.zeros((n_chunks, len(q), 3)), np.zeros((n_chunks, 3, 3))
    for chunk in numba.prange(n_chunks):
        r, square, fade = np.empty((3, TILE)), np.empty(TILE), np.empty(TILE)
        by_feature = np.empty((TILE, q.shape[1]))
        for tile in range(chunk * CHUNK, min((chunk + 1) * CHUNK, n_tiles)):
            for pair in range(pointer[tile], pointer[tile + 1]):
                near(points[tile], position[pair], cutoff, r, square, fade)
                to = token[pair]
                d_r = np.zeros((3, TILE))
                _by_feature(x[tile], z[to], y[to], n_radial, by_feature)
                _move_features(by_feature, r, square, a0, n_radial, cutoff, d_r)
                _move_averages(
                    d_average[tile], r, square, fade, b[tile], q[to], a0, n_radial, cutoff, d_r
                )
                out[tile] += d_r
                for k in range(3):
                    tokens[chunk, to, k] -= d_r[k].sum()
                    for j in range(3):
                        strains[chunk, k, j] += (d_r[k] * r[j]).sum()
    return out, tokens.sum(0), strains.sum(0)
