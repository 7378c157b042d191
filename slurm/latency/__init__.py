"""What the latency lab times: systems around one decoder of random weights, and a search."""
