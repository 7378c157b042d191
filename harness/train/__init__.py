"""Training: every stage of every system is data for the one loop in ``loop``."""
