"""Programs that hand over densities and take potentials, PySCF and ASE: only this knows them."""
