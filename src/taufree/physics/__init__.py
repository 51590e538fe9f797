"""Exact formulas: descriptors, analytic deorbitalizers, parents' exchange."""
