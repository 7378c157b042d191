"""A real SLURM on one machine: its daemons, what they are told, and the whole of it up and down."""
