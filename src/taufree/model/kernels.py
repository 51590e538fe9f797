"""Compiled loops over grid points, on a CPU.

Their plain forms are in `taufree.model.tokens`, `averages` and `sight`.

Attention between points and tokens has features and contraction fused in cache. A tile of points
makes the features of one token (12 kB), uses them at once and forgets them, so nothing of size
points × tokens is ever stored. Loops over the points of a tile are innermost, for the vector units.
What the experts see is one pass over memory forward and one backward.
"""

from __future__ import annotations

import numba
import numpy as np

TILE = 64
"""Grid points in a tile, neighbours in space."""
NEGLIGIBLE = 1e-20
"""Smaller Gaussians are zero: subnormal numbers would be a hundred times slower."""
LARGE = 3.0
"""Size of what a point reads above which it is damped: outside what was learned, bounded."""
CHUNK = 16
"""Tiles that are summed up together, whatever the number of threads: same bits always."""


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


@numba.njit(inline="always")
def _exp(t):  # type: ignore[no-untyped-def]
    """exp(t) for −60 ≤ t ≤ 0 by the Taylor series of its 64th root."""
    t = t / 64
    e = 1.0
    for k in (9, 8, 7, 6, 5, 4, 3, 2, 1):
        e = 1.0 + t / k * e
    for _ in range(6):
        e = e * e
    return e


@numba.njit(inline="always")
def _near(points, position, cutoff, r, square, fade):  # type: ignore[no-untyped-def]
    """Displacements r (3, TILE) from ``position``, their squares, and C(d)."""
    for i in range(TILE):
        for k in range(3):
            r[k, i] = points[k, i] - position[k]
        square[i] = r[0, i] * r[0, i] + r[1, i] * r[1, i] + r[2, i] * r[2, i]
        c = max(1.0 - square[i] / (cutoff * cutoff), 0.0)
        fade[i] = c * c * c


@numba.njit(inline="always")
def _moments(q, n, n_radial, a):  # type: ignore[no-untyped-def]
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
        As in `scatter`.
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
            _near(points[tile], position[pair], cutoff, r, square, fade)
            for n in range(n_radial[0]):
                a = a0 * 2.0**n
                q0, v, t = _moments(q[token[pair]], n, n_radial, a)
                for head in range(n_heads):
                    o = out[tile, 4 * head : 4 * head + 4]
                    for i in range(TILE):
                        x, y, z = r[0, i], r[1, i], r[2, i]
                        w = b[tile, head, i] / (a + b[tile, head, i])
                        k = a * w
                        e = _exp(-min(k * square[i], 60.0)) * w * np.sqrt(w) * fade[i]
                        tx = t[0] * x + t[3] * y + t[5] * z
                        ty = t[3] * x + t[1] * y + t[4] * z
                        tz = t[5] * x + t[4] * y + t[2] * z
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
                _near(points[tile], position[pair], cutoff, r, square, fade)
                d_q = parts[chunk, token[pair]]
                for n in range(n0):
                    a = a0 * 2.0**n
                    q0, v, t = _moments(q[token[pair]], n, n_radial, a)
                    s0 = sx = sy = sz = sxx = syy = szz = sxy = syz = sxz = 0.0
                    for head in range(n_heads):
                        g = d_out[tile, 4 * head : 4 * head + 4]
                        for i in range(TILE):
                            x, y, z = r[0, i], r[1, i], r[2, i]
                            gx, gy, gz = g[1, i], g[2, i], g[3, i]
                            width = b[tile, head, i]
                            w = width / (a + width)
                            k = a * w
                            e = _exp(-min(k * square[i], 60.0)) * w * np.sqrt(w) * fade[i]
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
                            tx = t[0] * x + t[3] * y + t[5] * z
                            ty = t[3] * x + t[1] * y + t[4] * z
                            tz = t[5] * x + t[4] * y + t[2] * z
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


@numba.njit("f8[:,::1](f8[:,::1], f8[::1], f8[:,::1], f8[:,::1], f8)", parallel=True, cache=True)
def see_averages(average, rho, u, b, soft):  # type: ignore[no-untyped-def]
    """What the experts see of averages: `taufree.model.averages.averages_plainly`, in one pass."""
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
