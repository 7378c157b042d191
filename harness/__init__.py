"""The floor of the project: contracts, data, clock, record. Knows no system, no suite and no cluster."""
