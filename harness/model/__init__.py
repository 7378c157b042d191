"""Decoders: how they are loaded, and the one loop that every system decodes with."""
