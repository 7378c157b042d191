"""Tables and figures of experiments, drawn from their records."""
