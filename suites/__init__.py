"""What is asked, and how an answer is scored: each suite's protocol is in its docstring."""
