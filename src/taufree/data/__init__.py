"""Reference densities of the parent: which systems, how calculated, split and stored."""
