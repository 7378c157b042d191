"""What a training takes: parameters, positions, FLOPs, memory, time and cost, by arithmetic over shapes alone."""
