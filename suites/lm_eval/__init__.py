"""Our systems and questions inside EleutherAI's lm-evaluation-harness (0.4.13). Needs the extra ``lm-eval``.

The YAML files here are tasks for its ``TaskManager``; its own models can do them too (``lm_eval run --include_path``).
"""
