"""Experiments. Each file is a lab notebook: the table that it fills, the command, the cost, the number to expect."""
