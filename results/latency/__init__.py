"""The journals of the latency lab: read, and drawn."""
