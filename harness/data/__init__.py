"""Where examples and texts come from: datasets of the Hub or of a local mirror, and the synthetic world."""
