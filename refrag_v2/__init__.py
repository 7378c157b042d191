"""REFRAG v2: the paper's method (arXiv:2509.01092)."""
