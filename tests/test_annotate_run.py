"""A language model on a faulty server writes artefact B: plan, run, export, and what follows."""

import collections
import dataclasses
import json
import logging
import random

import pyarrow.parquet as pq
import pytest
from openai_answers import question_of
from openai_server import Faults, OpenAIServer

from instructrec_jax import files
from instructrec_jax.cli import main
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import read_manifest
from instructrec_jax.stages.annotate.export import export
from instructrec_jax.stages.annotate.plan import plan
from instructrec_jax.stages.annotate.run import run
from instructrec_jax.stages.build import BuildSettings, build
from instructrec_jax.stages.lint import lint
from instructrec_jax.teacher.settings import ClientSettings
from instructrec_jax.teacher.texts import INTENTIONS, PREFERENCES, SCHEMAS
from instructrec_jax.teacher.wanted import WantedSettings, WantedTexts

MODEL = "tiny-teacher"
THINGS = ["a quiet hobby", "something for rainy days", "a present for a friend", "a treat"]


def answer(request):
    """Writes a sentence that the question decides; the first try on one in eight is of no use."""
    draw = random.Random(question_of(request))
    user = request["messages"][-1]["content"]
    is_retry = "An earlier answer could not be used" in user
    if not is_retry and draw.random() < 1 / 8:
        return draw.choice(["I'm sorry, but I can't assist with that.", '{"text": "The us', ""])
    opening = "The user likes" if '<data name="titles">' in user else "I am looking for"
    if "from two sides" in user:
        opening = "The user needs"
    words = f"{draw.choice(THINGS)} or {draw.choice(THINGS)}, and number {draw.randrange(900)}"
    return json.dumps({"text": f"{opening} {words}."})


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    return tmp_path_factory.mktemp("llm") / "teacher.sqlite"


@pytest.fixture(scope="module")
def written(toy_prepared, ledger):
    """Artefact B that a server with faults gave, and the server after it."""
    faults = Faults(
        dropped_after=0.005, rate_limited=0.05, retry_after_seconds=0.01, half_json=0.01
    )
    with OpenAIServer(faults=faults, answer=answer) as server:
        client = ClientSettings(base_url=server.base_url, max_in_flight=16)
        folder = ledger.parent / "texts"
        manifest = run(
            dataset="toy",
            input_dir=toy_prepared,
            output_dir=folder,
            ledger_path=ledger,
            settings=WantedSettings(model=MODEL),
            client=client,
        )
        assert manifest is not None
        yield folder, server


def test_every_text_is_written_or_its_reason_counted(written, toy_prepared):
    folder, _ = written
    found, users = read_manifest(folder), len(read_prepared(toy_prepared).histories)
    assert found.counts["preferences_asked"] == 3 * users
    for name in ("preferences", "intentions", "second_intentions"):
        left_out = sum(n for reason, n in found.drops.items() if reason.startswith(f"{name}_"))
        assert found.counts[name] + left_out == found.counts[f"{name}_asked"]
        assert found.counts[name] >= 0.95 * found.counts[f"{name}_asked"]
    assert not any("unanswered" in reason for reason in found.drops)
    written_by = found.settings["written_by"]
    assert written_by[f"{MODEL} preference-1"]["prompt_version"] == "preference-1"
    assert all(who["date"] for who in written_by.values())


def test_rows_stand_where_the_papers_budget_has_them(written, toy_prepared):
    folder, _ = written
    ends = {h.user_id: len(h.item_ids) - 1 for h in read_prepared(toy_prepared).histories}
    about = pq.read_table(folder / f"{PREFERENCES}.parquet").to_pylist()
    assert {ends[row["user_id"]] - row["position"] for row in about} == {0, 1, 2}
    assert all(len(row["texts"]) == 1 for row in about)
    behind = pq.read_table(folder / f"{INTENTIONS}.parquet").to_pylist()
    assert {(len(row["texts"]), len(row["second_texts"])) for row in behind} >= {(0, 1), (1, 0)}
    assert all(text.startswith("The user needs") for row in behind for text in row["second_texts"])


def test_further_renderings_stand_at_training_targets_alone_after_the_first_text(
    written, toy_prepared, ledger, tmp_path
):
    plain, server = written
    settings = WantedSettings(model=MODEL, augment=("paraphrase", "back_translation"))
    work = {"dataset": "toy", "input_dir": toy_prepared, "settings": settings}
    asked = len(server.billed)
    client = ClientSettings(base_url=server.base_url, max_in_flight=16)
    planned = plan(**work, client=client, ledger_path=ledger)
    kinds = {row[0]: int(row[1]) + int(row[3]) for row in planned.sections[0].tables[0].rows}
    found = run(**work, output_dir=tmp_path / "b", ledger_path=ledger, client=client)
    new = found.counts["paraphrases_asked"] + found.counts["back_translations_asked"]
    assert 0.6 * new <= len(server.billed) - asked <= new  # equal questions are one
    assert found.counts["back_translations_asked"] == kinds["back_translation"] == 60
    assert found.counts["paraphrases_asked"] <= kinds["paraphrase"]
    ends = {h.user_id: len(h.item_ids) for h in read_prepared(toy_prepared).histories}
    for name, before in ((n, rows_of(plain, n)) for n in (PREFERENCES, INTENTIONS)):
        after, number = rows_of(tmp_path / "b", name), collections.Counter()
        for (user, position), row in after.items():
            first = before.get((user, position), {})
            for column in {"texts", "second_texts"} & row.keys():
                texts, own = row[column], first.get(column, [])
                assert texts[: len(own)] == own
                assert len(texts) == len(own) or position < ends[user] - 2
                number[column] += len(texts) - len(own)
        assert number["texts"] > 20
        assert before.keys() <= after.keys()
    again = export(**work, output_dir=tmp_path / "c", ledger_path=ledger)
    assert again.counts == found.counts and again.drops == found.drops


def rows_of(folder, name):
    rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return {(row["user_id"], row["position"]): row for row in rows}


def test_an_export_writes_the_same_files_without_a_server(written, toy_prepared, ledger, tmp_path):
    folder, _ = written
    settings = WantedSettings(model=MODEL)
    work = {"dataset": "toy", "input_dir": toy_prepared, "ledger_path": ledger}
    again = export(**work, output_dir=tmp_path / "b", settings=settings)
    assert again.counts == read_manifest(folder).counts
    assert read_manifest(tmp_path / "b").settings == read_manifest(folder).settings
    for name in SCHEMAS:
        path = f"{name}.parquet"
        assert files.sha256(tmp_path / "b" / path) == files.sha256(folder / path)
    before = (tmp_path / "b" / "manifest.json").stat().st_mtime_ns
    export(**work, output_dir=tmp_path / "b", settings=settings)
    assert (tmp_path / "b" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="answers no question of these settings"):
        export(**work, output_dir=tmp_path / "c", settings=WantedSettings(model="other"))
    with pytest.raises(UserError, match="there is no ledger"):
        export(
            **{**work, "ledger_path": tmp_path / "no.sqlite"},
            output_dir=tmp_path / "c",
            settings=settings,
        )
    assert not (tmp_path / "c").exists()


def test_no_user_id_and_no_review_is_in_the_ledger(written, toy_prepared, ledger):
    data = read_prepared(toy_prepared)
    kept = b"".join(path.read_bytes() for path in ledger.parent.glob(f"{ledger.name}*"))
    assert len(kept) > 10_000
    assert not [user for user in data.histories.user_ids.to_pylist() if user.encode() in kept]
    assert not [text for text in data.reviews[:50] if len(text) > 20 and text.encode() in kept]


def test_what_is_unanswered_is_counted_and_has_no_row(written, toy_prepared, ledger, tmp_path):
    manifest = export(
        dataset="toy",
        input_dir=toy_prepared,
        ledger_path=ledger,
        output_dir=tmp_path / "b",
        settings=WantedSettings(model=MODEL, positions="all"),
    )
    unanswered = manifest.drops["preferences_unanswered"]
    rows = pq.read_table(tmp_path / "b" / f"{PREFERENCES}.parquet").num_rows
    left_out = sum(n for name, n in manifest.drops.items() if name.startswith("preferences_"))
    assert unanswered > 0 and rows == manifest.counts["preferences_asked"] - left_out


def test_a_plan_counts_what_a_run_sends(written, toy_prepared, ledger, capsys):
    flags = ["--dataset=toy", f"--input_dir={toy_prepared}", f"--model={MODEL}"]
    assert main.main(["annotate", "plan", *flags]) == 0
    shown = capsys.readouterr().out
    assert "gpt-4o-mini" in shown and f"No table has a price of {MODEL}" in shown
    assert "1 in all, one after the other within 24 hours" in " ".join(shown.split())
    assert main.main(["annotate", "plan", *flags, f"--ledger_path={ledger}"]) == 0
    assert "0 requests on 60 users; none was sent." in capsys.readouterr().out


def test_the_tokens_of_a_plan_are_near_those_of_a_run(toy_prepared, tmp_path):
    settings = WantedSettings(model=MODEL, max_users=20)
    work = {"dataset": "toy", "input_dir": toy_prepared, "settings": settings}
    with OpenAIServer() as server:
        client = ClientSettings(base_url=server.base_url)
        planned = plan(**work, client=client)
        assert not server.seen
    (row,) = [row for row in planned.sections[0].tables[0].rows if row[0] == "all"]
    questions = [t.question for b in WantedTexts(read_prepared(toy_prepared), settings) for t in b]
    assert int(row[1]) + int(row[3]) == len(questions)
    chars = sum(len(q.system + q.user + json.dumps(q.schema)) for q in questions)
    assert float(row[4].replace(",", "")) == pytest.approx(chars / 4 + 8 * len(questions), rel=0.02)


def test_texts_of_a_language_model_go_on_to_records_that_lint_finds_whole(
    written, toy_prepared, tmp_path, caplog
):
    folder, _ = written
    caplog.set_level(logging.INFO)
    build(
        dataset="toy",
        input_dir=toy_prepared,
        texts_dir=folder,
        output_dir=tmp_path / "records",
        settings=BuildSettings(vocab_size=600),
    )
    assert (
        f"texts by the teacher {MODEL} preference-1 intention-1 second-intention-1" in caplog.text
    )
    assert "not published: nobody has audited them" in caplog.text
    report = lint(
        dataset="toy",
        data_dir=tmp_path / "records",
        input_tokens=512,
        target_tokens=64,
        max_examples=20,
    )
    assert report.num_errors == 0, report.findings


def test_where_the_money_ends_what_was_answered_can_be_exported(toy_prepared, tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({MODEL: {"input_usd": 100.0, "output_usd": 100.0}}))
    work = {
        "dataset": "toy",
        "input_dir": toy_prepared,
        "output_dir": tmp_path / "b",
        "ledger_path": tmp_path / "teacher.sqlite",
        "settings": WantedSettings(model=MODEL),
    }
    with OpenAIServer(answer=answer) as server:
        client = ClientSettings(
            base_url=server.base_url, prices=str(prices), max_usd=2.0, max_in_flight=2
        )
        with pytest.raises(UserError, match="max_usd"):
            run(**work, client=client)
        assert not (tmp_path / "b").exists()
        found = export(**work)
        assert found.counts["preferences"] > 0
        assert found.drops["preferences_unanswered"] > 0
        whole = run(**work, client=dataclasses.replace(client, max_usd=None, max_in_flight=64))
    assert whole is not None and not any("unanswered" in name for name in whole.drops)
    assert read_manifest(tmp_path / "b").counts == whole.counts
    settings = WantedSettings(model="other")
    with pytest.raises(UserError, match=r"settings\['model'\] was 'tiny-teacher' there"):
        run(**{**work, "settings": settings}, client=client)  # before anything is asked


def test_a_run_that_is_stopped_writes_nothing_and_says_how_to_go_on(
    toy_prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "instructrec_jax.stages.annotate.run.ask_all",
        lambda questions, ledger, client, total=None: collections.Counter(stopped=1),
    )
    line = ["annotate", "run", "--dataset=toy", f"--input_dir={toy_prepared}", "--model=m"]
    places = [f"--output_dir={tmp_path / 'b'}", f"--ledger_path={tmp_path / 'l.sqlite'}"]
    assert main.main([*line, *places]) == 0
    assert capsys.readouterr().out.strip() == ""
    assert not (tmp_path / "b").exists()
