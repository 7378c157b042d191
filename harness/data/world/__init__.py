"""The synthetic world: a small closed universe in which every answer must be read, never remembered.

Real questions need downloads and a large decoder. The world needs neither: invented people with four facts each,
written as passages, asked about in the exact schemas of nq_open, trivia_qa and PopQA. It is written to disk as a
data root (``mirror``), so that the loaders, the retrievers and the suites run on it unchanged.

Three properties make its scores mean something:

1. Test entities never occur in training, and training draws its facts afresh for every example: an answer can
   only come from the passages.
2. Every passage of the same-relation set states the asked relation, so a reader that ignores the entity scores
   about 1/n there. That chance line is a metric (``chance``) and is printed beside every score.
3. Statement and question may use different nouns for one relation, so string matching is not enough.

What it is not: natural language. Each statement is eight words of one template, and a score here says nothing
about real questions.
"""

PREFIX = "world-"


def is_world(root_name: str) -> bool:
    """Whether a data root of this name is the synthetic world."""
    return root_name.startswith(PREFIX)
