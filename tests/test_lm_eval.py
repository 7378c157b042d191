"""Our systems in lm-eval: the answers and scores of our own loop, the likelihoods of lm-eval's own model, and back.

The reference is lm-eval 0.4.13 itself: its loop and metric over our documents, its HFLM over the same decoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean_stderr
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import hash_string

from harness.cli.catalog import LIKELIHOODS, SYSTEMS
from harness.cli.main import main
from harness.data.world.mirror import WorldConfig, write_world
from harness.errors import InputError
from harness.prompts import text_ids
from harness.protocol import LogLikelihood
from harness.record import RunRecord, read_rows
from results.lm_eval_samples import export, run_folders
from slurm.jobs.lm_evaluation import TASKS, LmEvaluationJob, task_names
from slurm.jobs.system import Opened, open_system, with_likelihood
from suites.lm_eval import documents
from suites.lm_eval.answering import Answering

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = PROJECT / "results" / "checkpoints"
N = 200


def shipped(pattern: str) -> str:
    (found,) = SHIPPED.glob(pattern)
    return str(found)


STANDARD = "standard_rag/finetune-tiny-*"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> LmEvaluationJob:
    """Standard RAG on 200 questions of the world over 4 passages."""
    folder = tmp_path_factory.mktemp("lm-eval")
    world = write_world(WorldConfig(people=400, questions=N, documents=2), folder / "world")
    return LmEvaluationJob(
        system="standard_rag",
        task="nq_open",
        checkpoint=shipped(STANDARD),
        out=folder / "out",
        runs=folder / "runs",
        passages=4,
        data=world,
        limit=N,
        max_new_tokens=4,
    )


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFRAG_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("REFRAG_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def both(job: LmEvaluationJob) -> tuple[Mapping[str, Any], list[dict[str, Any]], RunRecord, list[dict[str, Any]]]:
    """lm-eval's results and samples, and our record and journal of the same cell."""
    results = job.run()
    (file,) = (job.out / "standard_rag").glob("samples_nq_open_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    cell = job.cell()
    record = cell.run()
    folder = cell.open().spec.folder(job.runs)
    return results, samples, record, read_rows(folder / "predictions.jsonl", record.run_id)


def test_lm_eval_gives_our_answers_and_our_score(both: Any) -> None:
    results, samples, record, rows = both
    assert len(samples) == len(rows) == N
    assert [s["filtered_resps"] for s in samples] == [[row["prediction"].strip()] for row in rows]
    assert [s["exact_match"] for s in samples] == [row["scores"]["em_lmeval_nq"] for row in rows]
    theirs = results["results"]["nq_open"]["exact_match,remove_whitespace"]
    assert theirs == record.metrics["em_lmeval_nq"]["mean"]
    assert results["n-samples"]["nq_open"]["effective"] == N


def test_some_answers_are_wrong_or_the_comparison_would_prove_nothing(job: LmEvaluationJob) -> None:
    closed = replace(job, passages=0, out=job.out.with_name("closed"), limit=40)
    results = closed.run()
    record = closed.cell().run()
    mean = results["results"]["nq_open"]["exact_match,remove_whitespace"]
    assert mean == record.metrics["em_lmeval_nq"]["mean"] < 0.5


def test_the_documents_carry_the_passages_and_the_prompt_as_text(both: Any, job: LmEvaluationJob) -> None:
    _, samples, _, rows = both
    example = next(iter(job.cell().open().suite.examples()))
    doc = samples[0]["doc"]
    assert doc == documents.document(example)
    assert documents.passages(doc) == example.passages
    prompt = samples[0]["arguments"]["gen_args_0"]["arg_0"]
    assert prompt == documents.text(doc)
    assert all(p.text in prompt for p in example.passages)
    assert prompt.endswith(f"Question: {rows[0]['question'].rstrip('?')}?\nAnswer:")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_and_writes_what_lm_eval_writes(job: LmEvaluationJob, task: str) -> None:
    one = replace(job, task=task, limit=3, out=job.out.with_name(task))
    scores = one.run()["results"][task]
    assert 0 <= scores["exact_match,remove_whitespace"] <= 1
    assert one.said({"results": {task: scores}, "n-samples": {task: {"effective": 3}}}).startswith(
        f"{task}: exact_match"
    )
    (results,) = (one.out / "standard_rag").glob("results_*.json")
    assert json.loads(results.read_text())["config"]["spec"]["suite"]["name"] == TASKS[task]


# What the systems are to lm-eval.


def lm(opened: Opened, name: str = "standard_rag", window: int | None = None) -> Answering:
    return Answering(
        opened.system,
        opened.decoder,
        scoring=lambda: with_likelihood(name, opened.system),
        template=opened.config.template,
        window=window or opened.decoder.model.config.max_position_embeddings,
        max_new_tokens=4,
        batch_size=2,
    )


def instance(kind: Any, *arguments: Any, doc: Mapping[str, Any] | None = None) -> Instance:
    return Instance(request_type=kind, doc=dict(doc or {}), arguments=arguments, idx=0)


def opened(name: str = "standard_rag", pattern: str = STANDARD, **options: Any) -> Opened:
    return open_system(name, shipped(pattern), options, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def bare() -> Opened:
    return opened(template="bare")


@pytest.fixture(scope="module")
def hf(bare: Opened) -> HFLM:
    """lm-eval's own model around the same decoder. The world's tokenizer adds no BOS: a test writes it.

    Its cache of logits takes a request for another one whose context and continuation are as many tokens together
    ("the color" + "of" and "" + "the color of"): the first then gets the logits of the second's start.
    """
    return HFLM(pretrained=bare.decoder.model, tokenizer=bare.decoder.tokenizer, batch_size=2, logits_cache=False)


def args(request: Instance) -> tuple[str, str]:
    return request.args  # type: ignore[return-value]


TEXT = "the color of Bamo Duvi is green and the color of Kelu Roti is blue"


def test_likelihoods_are_those_of_lm_evals_own_model(bare: Opened, hf: HFLM) -> None:
    asked = [
        instance("loglikelihood", TEXT, " and the color"),
        instance("loglikelihood", "the color ", "of"),
        instance("loglikelihood", "", "the color of"),
        instance("loglikelihood", f"{TEXT} and the color of Bamo Duvi is", " green"),
    ]
    bos = bare.decoder.tokenizer.bos_token
    started = [instance("loglikelihood", bos + context if context else "", said) for context, said in map(args, asked)]
    for ours, theirs in zip(lm(bare).loglikelihood(asked), hf.loglikelihood(started), strict=True):
        assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
        assert ours[1] == theirs[1]


def test_greedy_is_what_the_system_says_itself(bare: Opened) -> None:
    ids, tokenizer = text_ids(bare.decoder.tokenizer, [TEXT])[0], bare.decoder.tokenizer
    context = bare.system.encode_tokens([[([], ids)]])  # type: ignore[attr-defined]
    said = [int(column[0]) for column in bare.system.generate([""], context, max_new_tokens=1)]
    answer = tokenizer.decode(said)
    found = lm(bare).loglikelihood(
        [instance("loglikelihood", TEXT, f" {answer}"), instance("loglikelihood", TEXT, " no")]
    )
    if text_ids(tokenizer, [TEXT + f" {answer}"])[0] == [*ids, *said]:
        assert found[0][1]
    assert not found[1][1]


def test_a_rolling_likelihood_that_fits_is_that_of_lm_evals_own_model(bare: Opened, hf: HFLM) -> None:
    asked = [instance("loglikelihood_rolling", TEXT), instance("loglikelihood_rolling", "green")]
    ours, theirs = lm(bare).loglikelihood_rolling(asked), hf.loglikelihood_rolling(asked)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_longer_text_is_scored_token_for_token_in_windows(bare: Opened) -> None:
    (ids,) = text_ids(bare.decoder.tokenizer, [TEXT])
    window = 12
    (found,) = lm(bare, window=window).loglikelihood_rolling([instance("loglikelihood_rolling", TEXT)])
    size = window - 2
    assert len(ids) > 2 * size, "or it would be one window"
    system = with_likelihood("standard_rag", bare.system)
    total, start = 0.0, 0
    while start < len(ids):
        # lm-eval: the last window is as long as the others where it can be, what it has seen before is context.
        end = min(start + size, len(ids))
        before = ids[max(0, end - size - 1) : start] if start else []
        context = system.encode_tokens([[([], before)] if before else []])
        total += float(system.log_probabilities([""], [ids[start:end]], context)[0].sum())
        start = end
    assert found == pytest.approx(total, rel=1e-5)


def test_passages_in_the_document_are_what_the_continuation_is_scored_under(job: LmEvaluationJob) -> None:
    cell = job.cell().open()
    example = next(iter(cell.suite.examples()))
    doc = documents.document(example)
    refrag = opened("refrag_v2", "refrag_v2/policy-tiny-k8-*")
    found = lm(refrag, "refrag_v2").loglikelihood(
        [instance("loglikelihood", documents.text(doc), answer, doc=doc) for answer in (example.answers[0], "the")]
    )
    system = with_likelihood("refrag_v2", refrag.system)
    context = system.encode([example.passages])  # type: ignore[attr-defined]
    (row,) = text_ids(refrag.decoder.tokenizer, [example.answers[0]])
    (log_p,) = system.log_probabilities([example.question], [row], context)
    assert found[0][0] == pytest.approx(float(log_p.sum()), abs=1e-5)
    assert found[0] > found[1], "the trained reader knows the answer"
    assert found[0][1] and not found[1][1]


def test_what_would_be_lost_is_refused(job: LmEvaluationJob) -> None:
    doc = documents.document(next(iter(job.cell().open().suite.examples())))
    plain, settings = opened(), {"until": ["\n"], "do_sample": False, "temperature": 0.0}
    model = lm(plain)
    prompt = documents.text(doc)
    assert model.generate_until([instance("generate_until", prompt, settings, doc=doc)])
    for context, changed, message in (
        (f"Answer these questions:\n\n{prompt}", settings, "few-shot examples, a description"),
        (prompt, {**settings, "do_sample": True}, "decode greedily"),
        (prompt, {**settings, "temperature": 0.7}, "decode greedily"),
        (prompt, {**settings, "top_p": 0.9}, "unknown setting of a generation 'top_p'"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate_until([instance("generate_until", context, changed, doc=doc)])
    with pytest.raises(InputError, match="takes the template 'bare', not 'tagged'"):
        model.generate_until([instance("generate_until", "2 + 2 =", settings)])
    model.template = None
    with pytest.raises(InputError, match="takes the template 'bare'; the system has no setting 'template'"):
        model.generate_until([instance("generate_until", "2 + 2 =", settings)])
    mixed = [instance("generate_until", prompt, settings, doc=doc), instance("generate_until", "2", settings)]
    with pytest.raises(InputError, match="both in one batch"):
        model.generate_until(mixed)
    with pytest.raises(InputError, match="expected passages with id, title and text"):
        model.generate_until([instance("generate_until", prompt, settings, doc={**doc, "passages": ["text"]})])


def test_until_cuts_the_answer(job: LmEvaluationJob) -> None:
    example = next(iter(job.cell().open().suite.examples()))
    doc = documents.document(example)
    model = lm(opened())
    ask = lambda until: model.generate_until([instance("generate_until", documents.text(doc), until, doc=doc)])[0]  # noqa: E731
    whole = ask({"until": []})
    assert len(whole) > 2
    assert ask({"until": [whole[2]]}) == whole.split(whole[2])[0]
    assert ask({"until": whole[2:]}) == whole[:2]


def test_who_has_a_likelihood_is_who_the_error_names() -> None:
    """Every system on a shipped checkpoint; and the error names the ones that can."""
    own = {
        "cepe": "cepe/cpt-tiny-*",
        "refrag_v1": "refrag_v1/*",
        "refrag_v2": "refrag_v2/policy-tiny-k8-*",
        "kv_reuse": "kv_reuse/*",
    }
    systems = {name: opened(name, own.get(name, STANDARD)) for name in SYSTEMS}
    assert {name for name, one in systems.items() if isinstance(one.system, LogLikelihood)} == set(LIKELIHOODS)
    without = lm(systems["kv_reuse"], "kv_reuse")
    for ask in (
        lambda: without.loglikelihood([instance("loglikelihood", "a", "b")]),
        lambda: without.loglikelihood_rolling([instance("loglikelihood_rolling", "a")]),
    ):
        with pytest.raises(InputError, match="kv_reuse generates, but .* systems that do: standard_rag, no_context"):
            ask()


# The command.


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["lm-eval", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    return err


def test_the_command_and_its_errors(
    job: LmEvaluationJob, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        "--checkpoint",
        job.checkpoint,
        "--data",
        str(job.data),
        "--runs",
        str(tmp_path / "runs"),
        "--limit",
        "4",
    ]
    given = ["--system", "standard_rag", *settings]
    assert main(["lm-eval", *given, "--tasks", "popqa,passkey", "--passages", "2", "--max-new-tokens", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["popqa", "passkey"]
    assert main(["lm-eval", *given, "--tasks", "passkey", "--ask", "length=128", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passkey"]["config"]["spec"]["suite"]["settings"]["length"] == 128
    assert "unknown task 'nq_opn' (did you mean 'nq_open'?)" in refused(capsys, *given, "--tasks", "nq_opn,popqa")
    assert "--ask is for the task passkey" in refused(capsys, *given, "--tasks", "popqa", "--ask", "length=128")
    assert "unknown setting of passkey" in refused(capsys, *given, "--tasks", "passkey", "--ask", "lenght=128")
    assert "of one suite's questions" in refused(capsys, *given, "--tasks", "popqa,nq_open", "--retrieval", "f")
    assert "unknown system 'rag'" in refused(capsys, "--system", "rag", *settings, "--tasks", "popqa")
    assert task_names("popqa,popqa,nq_open") == ("popqa", "nq_open")


# And back: our journals as lm-eval's files.


def test_an_exported_run_has_lm_evals_fields_hashes_and_means(
    both: Any, job: LmEvaluationJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, theirs, record, rows = both
    assert main(["export", str(job.runs), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"samples_nq_{record.provenance['created'].replace(':', '-')}.jsonl: {N} samples" in said
    (file,) = tmp_path.glob(f"standard_rag/{record.run_id}/samples_nq_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    fixed = [name for name in theirs[0] if name != "exact_match"]
    for ours, other, row in zip(samples, theirs, rows, strict=True):
        assert [name for name in ours if name not in row["scores"]] == fixed
        assert {name: ours[name] for name in ours["metrics"]} == row["scores"]
        assert (ours["doc_id"], ours["target"], ours["target_hash"]) == (
            other["doc_id"], other["target"], other["target_hash"],
        )  # fmt: skip
        assert ours["resps"] == [[row["prediction"]]]
        assert ours["doc_hash"] == hash_string(json.dumps(ours["doc"], indent=2, ensure_ascii=False))
        assert ours["prompt_hash"] == hash_string(ours["arguments"]["gen_args_0"]["arg_0"])
    (results,) = file.parent.glob("results_*.json")
    means = json.loads(results.read_text())["results"]["nq"]
    assert set(rows[0]["scores"]) < set(record.metrics), "the others are of the usage"
    for name in rows[0]["scores"]:
        metric = record.metrics[name]
        assert means[f"{name},none"] == pytest.approx(metric["mean"])
        assert means[f"{name}_stderr,none"] == pytest.approx(mean_stderr([row["scores"][name] for row in rows]))


def test_an_error_is_no_sample_and_is_counted(both: Any, job: LmEvaluationJob, tmp_path: Path) -> None:
    record = both[2]
    folder = job.cell().open().spec.folder(job.runs)
    copy = tmp_path / "runs" / record.run_id
    copy.mkdir(parents=True)
    (copy / "record.json").write_bytes((folder / "record.json").read_bytes())
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    broken = {
        name: value for name, value in json.loads(lines[3]).items() if name not in ("prediction", "scores", "usage")
    }
    lines[3] = json.dumps({**broken, "error": "RuntimeError: full"})
    (copy / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    written = export(copy, tmp_path / "out")
    assert (written.n, written.errors) == (N - 1, 1)
    ids = [json.loads(line)["doc_id"] for line in written.samples.read_text(encoding="utf-8").splitlines()]
    assert ids == [number for number in range(N) if number != 3], "places in the set, not in the file"


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        run_folders([tmp_path / "none"])
    with pytest.raises(InputError, match="no finished run"):
        run_folders([tmp_path])
    accepted = next((PROJECT / "results" / "records" / "nq").rglob("record.json")).parent
    with pytest.raises(InputError, match=r"has no predictions\.jsonl"):
        export(accepted, tmp_path)
