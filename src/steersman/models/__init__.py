"""POLICY -> VERSION: the graph with the preprocessing inside, parity, and the warehouse."""
