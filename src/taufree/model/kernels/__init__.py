"""Compiled loops over grid points, on a CPU.

Plain forms of ``kernels.tokens``, ``averages`` and ``sight`` are in the modules of
`taufree.model` of the same names. Loops over the points of a tile are innermost, for the vector
units.
"""

TILE = 64
"""Grid points in a tile, neighbours in space."""
CHUNK = 16
"""Tiles that are summed up together, whatever the number of threads: same bits always."""
