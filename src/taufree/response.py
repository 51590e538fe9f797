"""The second derivative of E_x with respect to the density, applied to changes of the density."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import grad

from taufree.functional import Functional, Geometry, hold, leaf
from taufree.model.averages import averaged_block, widths
from taufree.model.network import token_values
from taufree.physics.descriptors import reduced_gradient


class Response:
    """The linear map (δρ, δ∇ρ) → (δvrho, δvgrad) of `Functional.potential` at one density.

    E_x is three pieces joined by the linear maps Φᵀ and Φ between points and tokens:

        x = values(ρ, ∇ρ),  c = Φᵀ x,  (z, y, q) = answers(c),  f = Φ (z, y),
        E_x = Σ_j w_j e(ρ_j, ∇ρ_j, f_j, ρ̄_j[q])

    A change runs forward through them and the change of the derivatives runs back. With x̄ = ∂E_x/∂x
    and so on, each piece gives the Hessian of one scalar: of x̄·values(ρ, ∇ρ), of z̄·answers(c),
    and, block by block in bounded memory, of Σ w e(ρ, ∇ρ, f, ρ̄[q]). The network runs in float64.

    Parameters
    ----------
    functional, rho, grad_rho, weights, geometry
        As in `Functional.potential`.
    """

    def __init__(
        self,
        functional: Functional,
        rho: Tensor,
        grad_rho: Tensor,
        weights: Tensor,
        geometry: Geometry,
    ) -> None:
        self.functional, self.token_map = functional.double(), geometry.token_map
        self.rho, self.grad_rho, self.held = hold(rho, grad_rho)
        self.weights, self.normalizer = weights * self.held, geometry.normalizer
        all_points = slice(None)
        self.c = leaf(self.token_map.to_tokens(self._values(self.rho, self.grad_rho, all_points)))
        with torch.enable_grad():
            self.answers = self.functional.answers(self.c, geometry.bonds)
        d_z = self._no_answers()
        for points, tiles in self.token_map.blocks():
            variables = self._at(points, tiles)
            with torch.enable_grad():
                d_f, d_q = grad(self._energy(points, tiles, *variables), variables[2:])
            self._collect(d_z, d_f, d_q, tiles)
        self.d_answers = tuple(map(leaf, d_z))
        with torch.enable_grad():
            (self.d_c,) = grad(self.answers, self.c, self.d_answers, create_graph=True)

    def __call__(self, d_rho: Tensor, d_grad_rho: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of vrho and vgrad for several changes of the density at once.

        Shapes: (n_changes, n_points), (n_changes, n_points, 3) -> the same two.
        """
        n_changes = len(d_rho)
        d_rho = torch.where(self.held > 0, d_rho, 0.0)
        d_grad_rho = torch.where(self.held[:, None] > 0, d_grad_rho, 0.0)
        vrho, vgrad = torch.empty_like(d_rho), torch.empty_like(d_grad_rho)

        z_changes, c_changes = [], []
        for dn, dg in zip(d_rho, d_grad_rho, strict=True):
            dc = self.token_map.to_tokens(self._change_of_values(dn, dg))
            d_d_c, *d_answers = grad(self.d_c, (self.c, *self.d_answers), dc, retain_graph=True)
            z_changes.append(d_answers)
            c_changes.append(d_d_c)

        answers = [self._no_answers() for _ in range(n_changes)]
        for points, tiles in self.token_map.blocks():
            variables = self._at(points, tiles)
            with torch.enable_grad():
                energy = self._energy(points, tiles, *variables)
                slopes = grad(energy, variables, create_graph=True)
            for k in range(n_changes):
                dz, dy, dq = z_changes[k]
                df = self.token_map.scatter(dz, dy, tiles)
                change = d_rho[k, points], d_grad_rho[k, points], df, dq
                vrho[k, points], vgrad[k, points], d_f, d_q = grad(
                    slopes, variables, change, retain_graph=True
                )
                self._collect(answers[k], d_f, d_q, tiles)

        for k, d_z in enumerate(answers):
            c_changes[k] += grad(self.answers, self.c, d_z, retain_graph=True)[0]
        for points, tiles in self.token_map.blocks():
            n, g = leaf(self.rho[points]), leaf(self.grad_rho[points])
            with torch.enable_grad():
                values = self._values(n, g, points)
                first = grad(values, (n, g), self._scalars(self.d_c, tiles), create_graph=True)
            for k in range(n_changes):
                local = d_rho[k, points], d_grad_rho[k, points]
                curved = grad(first, (n, g), local, retain_graph=True)
                straight = grad(
                    values, (n, g), self._scalars(c_changes[k], tiles), retain_graph=True
                )
                vrho[k, points] += curved[0] + straight[0]
                vgrad[k, points] += curved[1] + straight[1]
        return vrho, vgrad

    def _values(self, rho: Tensor, grad_rho: Tensor, points: Tensor | slice) -> Tensor:
        s, electrons = reduced_gradient(rho, grad_rho), self.weights[points] * rho
        return token_values(s, electrons, self.normalizer[points])

    def _change_of_values(self, d_rho: Tensor, d_grad_rho: Tensor) -> Tensor:
        n, g = leaf(self.rho), leaf(self.grad_rho)
        with torch.enable_grad():
            values = self._values(n, g, slice(None))
            d_values = torch.zeros_like(values).requires_grad_()
            first = grad(values, (n, g), d_values, create_graph=True)
        return grad(first, d_values, (d_rho, d_grad_rho))[0]

    def _at(self, points: Tensor, tiles: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Variables of the energy of a block of points: ρ, ∇ρ, f and q."""
        z, y, q = (x.detach() for x in self.answers)
        f = self.token_map.scatter(z, y, tiles)
        return leaf(self.rho[points]), leaf(self.grad_rho[points]), leaf(f), leaf(q)

    def _energy(
        self, points: Tensor, tiles: slice, n: Tensor, g: Tensor, f: Tensor, q: Tensor
    ) -> Tensor:
        s = reduced_gradient(n, g)
        b = widths(n, s)
        average = averaged_block(self.token_map, q, b, tiles)
        return self.weights[points] @ self.functional.at_points(n, s, b, f, average)[0]

    def _no_answers(self) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(x) for x in self.answers)

    def _collect(
        self, d_answers: tuple[Tensor, ...], d_f: Tensor, d_q: Tensor, tiles: slice
    ) -> None:
        n_directed = self.functional.network.config.n_directed
        shares = *self.token_map.gather(d_f, n_directed, tiles), d_q
        for total, share in zip(d_answers, shares, strict=True):
            total += share

    def _scalars(self, c: Tensor, tiles: slice) -> Tensor:
        c = c.detach()
        return self.token_map.scatter(c, self.token_map.no_tensors(c), tiles)
