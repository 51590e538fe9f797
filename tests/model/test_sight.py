"""What the experts see: the compiled pass against the plain form, invariance, derivatives."""

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from taufree.model.sight import see, see_plainly
from taufree.model.tokens import solid_harmonics

N_SCALARS = 5


def random_points(n: int, n_directed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Local inputs and what was read, of sizes on both sides of the damping."""
    torch.manual_seed(n + n_directed)
    size = torch.logspace(-2, 1, n)[:, None]
    local, f = torch.randn(n, 4), size * torch.randn(n, N_SCALARS + 8 * n_directed)
    return [x.to(dtype).requires_grad_() for x in (local, f)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("n_directed", [0, 1, 8])
@pytest.mark.parametrize("n", [0, 1, 70])
def test_the_compiled_pass_is_the_plain_form(n, n_directed, dtype, tolerance):
    local, f = random_points(n, n_directed, dtype)
    seen, plainly = see(local, f, n_directed), see_plainly(local, f, n_directed)
    assert seen.shape == (n, 2 + N_SCALARS + 4 * n_directed)
    torch.testing.assert_close(seen, plainly, rtol=tolerance, atol=tolerance)
    back = torch.randn_like(seen)
    for one, other in zip(
        torch.autograd.grad(seen, (local, f), back),
        torch.autograd.grad(plainly, (local, f), back),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_first_and_second_derivatives_are_those_of_finite_differences():
    points = random_points(4, 2)
    assert torch.autograd.gradcheck(lambda *x: see(*x, 2), points)
    assert torch.autograd.gradgradcheck(lambda *x: see(*x, 2), points)
    columns = [x.detach().T.contiguous().T.requires_grad_() for x in points]  # as a view comes
    assert torch.autograd.gradgradcheck(lambda *x: see(*x, 2), columns)


def test_a_rotation_changes_nothing():
    """Vectors turn with r; l = 2 tensors as the harmonics of a turned direction do."""
    turn = torch.from_numpy(Rotation.random(rng=3).as_matrix())
    local, f = (x.detach() for x in random_points(9, 2))
    axes = torch.randn(9, 2, 3, dtype=torch.float64)

    def read(r: Tensor) -> Tensor:
        harmonics = solid_harmonics(r.transpose(1, 2), 2)  # (9, l and m, channel)
        return torch.cat([f[:, :N_SCALARS], harmonics[:, 1:].flatten(1)], 1)

    turned = torch.cat([local[:, :1], local[:, 1:] @ turn.T], 1)
    before, after = see(local, read(axes), 2), see(turned, read(axes @ turn.T), 2)
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)


def test_what_is_read_stays_bounded():
    local, f = random_points(3, 2)
    seen = see(local, 1e6 * f, 2)
    assert torch.isfinite(seen).all()
    assert seen[:, 2 : 2 + N_SCALARS].square().mean(1).max() < 9.01
