"""Records for a page: two systems of the world, one with a journal, and texts that would act if they could."""

import gzip
import json
from pathlib import Path

from test_results import write_record

from harness.config import file_digest

ATTACK = (
    "<script>window.attacked = 1</script></script><img src=x onerror='window.attacked = 1'>"
    "[x](javascript:window.attacked=1)<a href='javascript:window.attacked=1'>"
    '"><svg onload=window.attacked=1>{{ 7 * 7 }}'
)


def write_runs(folder: Path) -> Path:
    """The runs below ``folder``; returns it. Its journal: 4 wrong, 5 right, an error, a torn line."""
    contexts = folder / "data" / "world-0" / "ctxs" / "same_relation_n8.jsonl.gz"
    contexts.parent.mkdir(parents=True)
    rows = [
        {
            "id": f"q{i}",
            "question": f"{ATTACK} {i}",
            "answers": ["Vepin", ATTACK],
            "ctxs": [
                {
                    "id": f"{i}-{j}",
                    "title": f"Person {j}" if j % 2 == 0 else f"{ATTACK} {j}",
                    "text": f"{ATTACK} {'long ' * 100}",
                }
                for j in range(9)
            ],
        }
        for i in range(10)
    ]
    contexts.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0))
    digest = file_digest(contexts)
    write_record(folder, "a" * 16, **{"metrics.em.mean": 0.5})
    write_record(folder, "b" * 16, **{"spec.system.name": "cepe", "metrics.em.mean": 0.07, "notes": [ATTACK]})
    write_record(folder, "c" * 16, **{"spec.system.name": f"new {ATTACK}"})
    path = write_record(
        folder,
        "d" * 16,
        **{
            "spec.system.name": "refrag_v2",
            "spec.system.config": {"k": 8, "template": ATTACK},
            "spec.retrieval": {"retriever": "given", "setting": "same relation", "digest": digest},
        },
    )
    lines = [
        {
            "run_id": "d" * 16,
            "i": i,
            "id": row["id"],
            "question": row["question"],
            "answers": row["answers"],
            **(
                {"error": f"RuntimeError: {ATTACK}"}
                if i == 9
                else {
                    "prediction": ATTACK,
                    "scores": {"em": float(i > 3), "f1": float(i > 3)},
                    "usage": {"chunks": 32, "chunks_expanded": 3},
                }
            ),
        }
        for i, row in enumerate(rows)
    ]
    journal = "".join(json.dumps(line) + "\n" for line in lines) + '{"run_id": "ddd'
    path.with_name("predictions.jsonl").write_text(journal)
    return folder
