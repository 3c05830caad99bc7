"""A language model's texts all the way: asked for, audited, published, trained on and reported."""

import json
import logging

import pytest
from openai_server import Faults, OpenAIServer
from test_annotate_run import MODEL, answer
from test_audit import fill

from instructrec_jax.cli import main
from instructrec_jax.manifest import read_manifest
from instructrec_jax.stages.run_data import RunData

QUERIES = ("preference", "vague", "specific")
TASKS = [f"toy.C10.{query}" for query in QUERIES]
TEACHER = f"{MODEL} preference-1 intention-1 second-intention-1"

pytestmark = pytest.mark.slow


def run(*line):
    assert main.main([str(part) for part in line]) == 0, line


def gin(**macros):
    return [f"--gin.{name}={json.dumps(value)}" for name, value in macros.items()]


@pytest.fixture(scope="module")
def texts(toy_prepared, tmp_path_factory):
    """Artefact B by a language model, audited by two people and published."""
    root = tmp_path_factory.mktemp("whole")
    about = ["--dataset=toy", f"--input_dir={toy_prepared}"]
    asked = [*about, f"--ledger_path={root / 'teacher.sqlite'}", f"--model={MODEL}"]
    faults = Faults(rate_limited=0.05, retry_after_seconds=0.01, half_json=0.01)
    with OpenAIServer(faults=faults, answer=answer) as server:
        run(
            "annotate", "run", *asked, f"--output_dir={root / 'b'}", f"--base_url={server.base_url}"
        )
    run("annotate", "export", *asked, f"--output_dir={root / 'again'}")
    for name in ("preferences", "intentions"):
        again, first = (root / folder / f"{name}.parquet" for folder in ("again", "b"))
        assert again.read_bytes() == first.read_bytes()
    sample, texts = root / "sample", f"--texts_dir={root / 'b'}"
    run("audit", "sample", *about, texts, f"--output_dir={sample}", "--num_texts=20")
    sheets = [
        fill(sample, root / f"{who}.csv", lambda n, name, who=who: "yes" if n % who else "no")
        for who in (3, 4)
    ]
    folder = f"--output_dir={root / 'audited'}"
    run("audit", "report", f"--sample_dir={sample}", folder, "--sheet", *sheets)
    run("audit", "publish", texts, f"--report_dir={root / 'audited'}")
    return root / "b"


@pytest.fixture(scope="module")
def reported(texts, toy_prepared):
    """The report of personalised search by each kind of query, and what was said on the way."""
    root, said = texts.parent, []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("instructrec_jax").addHandler(handler)
    about = ["--dataset=toy", f"--texts_dir={texts}"]
    records = root / "records"
    run(
        *("build", *about, f"--input_dir={toy_prepared}", f"--output_dir={records}"),
        *("--num_train_negatives=20", "--vocab_size=600"),
    )
    run("lint", "--dataset=toy", f"--data_dir={records}", "--max_examples=3")
    files = [f"--gin_file=gin/{name}.gin" for name in ("models/t5_tiny", "mixtures/ml_100k")]
    files += gin(
        DATA_DIR=str(records),
        MIXTURE_OR_TASK_NAME=TASKS[0],
        VOCAB_SIZE=read_manifest(records / "toy").counts["vocabulary"],
        TASK_FEATURE_LENGTHS={"inputs": 320, "targets": 40, "history": 4, "title": 20},
    )
    short = {"TRAIN_STEPS": 2, "EVAL_PERIOD": 2, "EVAL_STEPS": 1, "BATCH_SIZE": 8}
    of_model = gin(MODEL_DIR=str(root / "model"), EVAL_TASKS=TASKS[:1], **short)
    run("train", *files, "--gin_file=gin/runs/from_scratch.gin", *of_model)
    for split in ("validation", "test"):
        places = {
            "CHECKPOINT_PATH": str(root / "model"),
            "INFER_OUTPUT_DIR": str(root / "scores" / split),
        }
        macros = gin(SPLIT=split, SCORE_TASKS=TASKS, DTYPE="float32", **places)
        run("score", *files, "--gin_file=gin/runs/score.gin", *macros)
    scores = f"model={root / 'scores' / 'validation'}:{root / 'scores' / 'test'}"
    where = [f"--prepared_dir={toy_prepared}", f"--output_dir={root / 'report'}"]
    run("report", *about, "--scores", scores, *where)
    logging.getLogger("instructrec_jax").removeHandler(handler)
    return json.loads((root / "report" / "report.json").read_text()), "\n".join(said)


def test_personalised_search_is_reported_by_each_kind_of_query_with_its_teacher(reported):
    found, said = reported
    assert sorted(found["scenarios"]) == sorted(f"personalized_search.{query}" for query in QUERIES)
    for name, scenario in found["scenarios"].items():
        about = scenario["protocol"]["systems"]["model"]
        assert (about["template"], about["teacher"]) == (f"C10.{name.split('.')[1]}", TEACHER)
        assert set(scenario["test"]) >= {"model", "random", "popularity"}
        assert 0 <= scenario["test"]["model"]["hr@1"]["estimate"] <= 1
    assert found["scenarios"]["personalized_search.preference"]["protocol"]["num_examples"] == 60
    said = " ".join(said.split())
    assert f"texts by the teacher {TEACHER}, audited on 40 texts by 2 people" in said


def test_records_say_who_audited_their_texts(reported, texts, toy_records):
    records = texts.parent / "records"
    counts = read_manifest(records / "toy").counts
    assert (counts["texts/audited"], counts["texts/annotators"]) == (40, 2)
    about = RunData(data_dir=str(toy_records), feature_lengths={}).about_texts("toy.A7")
    assert about == (
        "texts by the teacher extractive-3; nobody had audited them when they were built in"
    )
