"""Tolerances that tests share, each with its reason. Energies in hartree unless relative."""

LIBXC = 1e-12
"""Relative: a closed formula in float64, ours and libxc's, each a few dozen roundings."""

ROUNDING = 1e-13
"""Relative: the same few operations in float64, in another order."""

SUM_ROUNDING = 1e-10
"""Relative: float64 sums over thousands of points and through the network, in another order."""

SUM_ROUNDING_SINGLE = 1e-5
"""Relative: the same in float32 (2⁻²⁴ = 6e-8), through three matrix products and a softmax."""

FINITE_DIFFERENCE = 1e-6
"""Relative: five-point central differences at steps chosen so that this is rounding's share."""

QUADRATURE = 1e-10
"""Relative: Gauss-Laguerre quadrature of an exponential times a smooth function."""

PRINTED_CONSTANT = 1e-5
"""A constant that its paper prints with five digits after the point."""

SCF = 1e-8
"""An SCF converged to PySCF's default conv_tol = 1e-9, reached by two different roads."""

SAME_INTEGRAL = 1e-9
"""One E_xc by two ways of cutting the same float64 sums: blocks, order, memory."""

SAME_INTEGRAL_SINGLE = 1e-6
"""The same with a float32 network."""

SCREENING = 1e-9
"""PySCF leaves out AO values and pairs with products below 1e-13, at thousands of points."""

ROTATION = 1e-5
"""What turning or moving a molecule may change beyond the parent's change on the same grid."""

GRID_PER_ATOM = 5e-5
"""What grid level 3 to 5 may change per atom beyond the parent's change."""

SIZE_CONSISTENCY = 1e-6
"""Two molecules 50 bohr apart, beyond every cutoff, less twice one."""

BOX = 1e-8
"""Orbitals of neighbouring boxes, 25 bohr apart, on a molecule's grid that leaves its box."""

DOUBLED_CELL = 1e-6
"""What a cell twice as large may change per atom beyond the parent's change."""

SHIFTED = 1e-5
"""What moving all atoms between the points of a grid may change beyond the parent's change."""
