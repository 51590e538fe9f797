"""Errors of a model beside its parent and other deorbitalizers, speed, the report."""
