"""REFRAG v1: the early, flawed version that is kept as a control."""
