"""What a gate says of two commits, and its history over many."""
