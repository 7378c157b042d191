"""The one door: ``refrag-bench VERB …``. The only part of ``harness`` that may reach upward, by name and lazily."""
