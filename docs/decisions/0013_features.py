"""The measurement behind 0013: sizes of the features that tokens see, at equal training.

Each is trained for the same steps by the same draws, and scored on the validation split: mean
|ΔE_x|, L1, and the change of E_x from grid level 1 to 3, in mHa.
Run: python 0013_features.py DATA OUT
"""

import sys
from pathlib import Path

import torch

from taufree.data.store import iter_records
from taufree.functional import Functional
from taufree.model.storage import load_model
from taufree.training.loop import train

SIZES = {
    "12, 5, 4; 7.5": (0.1, [12, 5, 4], 7.5),
    "12, 4, 3; 6.5": (0.12, [12, 4, 3], 6.5),
    "9, 4, 3; 6.5": (0.12, [9, 4, 3], 6.5),
    "8, 4, 3; 6.0": (0.12, [8, 4, 3], 6.0),
    "7, 4, 3; 6.0": (0.12, [7, 4, 3], 6.0),
}
RUN = """
data = "{data}"
out = "{out}"
steps = 1000
densities_per_step = 8
points_per_density = 1024
learning_rate = 1.2e-2
energy_weight = 2.0
balance_weight = 1.0e-2
shares = {{ g2 = 0.6, atoms = 0.1, ions = 0.1, diatomics = 0.2 }}
model = {{ min_exponent = {exponent}, n_radial = {n_radial}, cutoff = {cutoff} }}
"""


def main(data: Path, out: Path) -> None:
    """Train and score each; print a table."""
    for label, (exponent, n_radial, cutoff) in SIZES.items():
        folder = out / f"{n_radial[0]}-{cutoff}"
        folder.mkdir(parents=True, exist_ok=True)
        run = RUN.format(data=data, out=folder, exponent=exponent, n_radial=n_radial, cutoff=cutoff)
        (folder / "run.toml").write_text(run)
        result = train(folder / "run.toml")
        errors = result["validation"]
        change = drift(load_model(result["weights"]), data)
        print(
            f"{label:15} {errors['molecules_energy_error_mha']:6.2f} "
            f"{errors['molecules_l1_mha']:6.1f} {change:6.2f}"
        )


@torch.no_grad()
def drift(functional: Functional, data: Path) -> float:
    """Mean |E_x(level 3) − E_x(level 1)| of the validation split's molecules, mHa."""
    energies: dict[str, dict[int, float]] = {}
    wanted = iter_records(data, split="validation", levels=(1, 3), density_kinds=["converged"])
    for record in wanted:
        density = record.density
        if density.lattice is not None or record.kind == "small":
            continue
        geometry = functional.geometry(density.coords, density.centers)
        arguments = density.weights, geometry
        channels = [functional.energy_density(*x, *arguments) for x in density.unpolarized]
        energy = sum(float(e @ density.weights) for e in channels) / density.n_spin
        energies.setdefault(record.name, {})[record.grid_level] = energy
    changes = [abs(e[3] - e[1]) for e in energies.values()]
    return 1000 * sum(changes) / len(changes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
