"""Every published or claimed number with its source, and whether what was measured agrees."""
