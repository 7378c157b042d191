"""The seed's and the paper's tables and figures, with what was measured beside each number."""
