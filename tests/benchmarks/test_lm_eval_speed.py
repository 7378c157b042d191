"""Our evaluation against lm-eval with its own hf model: the same 500 questions, prompts, decoder and batch size.

Both generate up to four tokens and stop at EOS. lm-eval gets its requests ready-made (no task loading inside the
clock), and passes as text what we pass as token ids; equal answers show that both read the same.
"""

import logging
from pathlib import Path

import pytest
from interleaved import interleave, report

from baselines.standard_rag import StandardRAGConfig
from harness import prompts
from harness.data.sources import DataRoot
from harness.model.load import load_decoder
from slurm.jobs.data import RetrieveJob
from suites import qa

BATCH = 8
PASSAGES = 4
NEW_TOKENS = 4


def test_five_hundred_world_questions(checkpoint: Path, world: Path, device: str, tmp_path: Path) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs the extra lm-eval")
    from lm_eval.api.instance import Instance

    logging.disable(logging.WARNING)
    frozen = RetrieveJob(suite="nq", retriever="bm25", data=world, runs=tmp_path).run().path
    suite = qa.build("nq", DataRoot.open(world), passages=PASSAGES, frozen=frozen, limit=500)
    examples = list(suite.examples())
    assert len(examples) == 500

    decoder = load_decoder(str(checkpoint), device=device)
    system = StandardRAGConfig(template="tagged").build(decoder)

    def ours() -> list[str]:
        answers: list[str] = []
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            context = system.encode([example.passages for example in batch])
            columns = list(system.generate([e.question for e in batch], context, max_new_tokens=NEW_TOKENS))
            answers += system.text(columns)
        return answers

    other = load_decoder(str(checkpoint), device=device)
    harness_lm = huggingface.HFLM(
        pretrained=other.model, tokenizer=other.tokenizer, batch_size=BATCH, max_length=4096, add_bos_token=False
    )
    template = prompts.TAGGED
    texts = [
        other.tokenizer.decode(
            [
                *template.start_ids(other.tokenizer),
                *(token for block in template.passage_ids(other.tokenizer, example.passages) for token in block),
                *template.question_ids(other.tokenizer, [example.question])[0],
            ]
        )
        for example in examples
    ]
    settings = {"until": ["</s>"], "max_gen_toks": NEW_TOKENS, "do_sample": False}

    def theirs() -> list[str]:
        requests = [
            Instance(request_type="generate_until", doc={}, arguments=(text, dict(settings)), idx=index)
            for index, text in enumerate(texts)
        ]
        return harness_lm.generate_until(requests, disable_tqdm=True)

    same = sum(a == b.strip() for a, b in zip(ours(), theirs(), strict=True))
    assert same == len(examples)
    ways = {"ours": lambda: len(ours()), "lm_eval (hf)": lambda: len(theirs())}
    rates = interleave(ways, rounds=5)
    report(f"500 questions, {PASSAGES} passages, batch {BATCH}; all answers equal", "questions/s", rates, "ours")
