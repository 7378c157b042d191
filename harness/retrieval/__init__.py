"""From a question to passages: the corpus, the indexes over it, and the frozen file that every system reads."""

from harness.retrieval.retrievers import open_index as open_index
