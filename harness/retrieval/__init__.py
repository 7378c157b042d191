"""From a question to passages: the corpus, the indexes over it, and the frozen file that every system reads."""

from harness.retrieval.catalogue import open_index as open_index
