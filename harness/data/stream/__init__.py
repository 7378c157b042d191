"""Text at any size as shards of token windows, and training batches in one global order of them."""
