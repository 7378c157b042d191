"""Is one commit worse than another? Two worktrees, their answers and their times; what is judged is in results/."""
