"""Simulated products and real logged data sets with known true values: the ruler for tests, docs and demos."""
