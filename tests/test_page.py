"""The page of a report: hostile texts, its policy, its size, its pictures, and single users."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from report_toy import NUM_USERS, candidate_list, make_data, make_folders, run

from instructrec_jax.errors import UserError
from instructrec_jax.metrics.statistics import Interval
from instructrec_jax.report import charts, page, users
from instructrec_jax.report.charts import IntervalChart, LineChart, Mark
from instructrec_jax.report.tables import Document, Section, Table
from instructrec_jax.report.users import Scenario, User
from instructrec_jax.stages.report.users import _explanation, read_explanations

HOSTILE = "</script><script>alert(1)</script><!--\"'>\u202e\u2066&lt; </td>"


def user(number, title="Kite", **changes):
    values = {
        "id": f"{number}:7",
        "user": str(number),
        "query": "",
        "history": [f"{title} {n}" for n in range(20)],
        "candidates": [f"{title} {number} {n}" for n in range(10)],
        "target": 3,
        "prompts": {},
        "log_likelihoods": [[-1.25] * 9 + [None]] * 2,
        "values": [[-0.5] * 10] * 2,
        "ranks": [list(range(1, 11))] * 2,
    }
    return User(**(values | changes))


def packed(*found, max_bytes=10**6):
    systems = [{"name": n, "template": "A1", "normaliser": "sum"} for n in ("model", "popularity")]
    scenario = Scenario(name="sequential", total=900, systems=systems, users=found)
    return users.packed([scenario], max_bytes=max_bytes)


def explanations(title):
    """What `explain` writes of the first user of the toy report."""
    example = candidate_list(0, "test", make_data().histories[0].item_ids)
    item = {"title": title, "margin": 0.5, "log_likelihood": -0.25, "rank": 2, "likeness": None}
    yield {
        "example_id": example.example_id,
        "scenario": "sequential",
        "template": "A9",
        "target_id": example.target_id,
        "num_prompts": 2,
        "rank": 1,
        "margin": 1.5,
        "log_likelihood": -2.0,
        "items": [item],
        "reasoning": title,
    }


class Elements(HTMLParser):
    """Collects the elements, their attributes and the texts of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.raw, self.texts = [("", {})], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attrs = self.found[-1]
        if tag in ("script", "style"):
            self.raw.setdefault((tag, attrs.get("type")), data)
        else:
            self.texts.append(data)


@pytest.fixture(scope="module")
def hostile():
    marks = [Mark(label=HOSTILE, interval=Interval(0.5, 0.4, 0.6), shown=HOSTILE)]
    table = Table(
        title=HOSTILE,
        note=HOSTILE,
        header=[HOSTILE],
        rows=[[HOSTILE]],
        footnotes=[HOSTILE],
        charts=[
            IntervalChart(title=HOSTILE, marks=marks),
            LineChart(title=HOSTILE, x_label=HOSTILE, series={HOSTILE: [(1, 2.0), (2, 3.0)]}),
        ],
    )
    section = Section(
        title=HOSTILE, tables=[table], details=[table], facts={HOSTILE: HOSTILE, "command": HOSTILE}
    )
    document = Document(
        title=HOSTILE,
        sections=[section, section],
        messages=[(HOSTILE, HOSTILE)],
        summary=HOSTILE,
        facts={"a": HOSTILE},
        users=packed(user(1, HOSTILE, prompts={HOSTILE: HOSTILE}, query=HOSTILE)),
    )
    return page.as_html(document)


def test_texts_of_others_stay_texts(hostile):
    elements = Elements(hostile)
    assert [attrs.get("type") for tag, attrs in elements.found if tag == "script"] == [
        "application/json",
        None,
    ]
    assert "alert(1)" not in elements.raw["script", None]
    assert "<" not in elements.raw["script", "application/json"]
    data = json.loads(elements.raw["script", "application/json"])
    assert data["titles"][0] == f"{HOSTILE} 0", "and nothing of them is lost"
    assert HOSTILE in elements.texts
    names = {name for _, attrs in elements.found for name in attrs}
    assert not {name for name in names if name.startswith("on")} and "style" not in names


def test_the_policy_allows_the_own_script_and_style_and_nothing_else(hostile):
    elements = Elements(hostile)
    (policy,) = [
        attrs["content"]
        for tag, attrs in elements.found
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    for tag in ("script", "style"):
        digest = hashlib.sha256(elements.raw[tag, None].encode()).digest()
        assert rules.pop(f"{tag}-src") == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules == {"img-src": "data:"}
    links = [v for _, attrs in elements.found for k, v in attrs.items() if k in ("href", "src")]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|WebSocket|innerHTML", hostile)


def test_ids_are_unique_and_controls_have_labels(hostile):
    elements = Elements(hostile)
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(
        attrs.get("aria-label") for tag, attrs in elements.found if attrs.get("role") == "img"
    )


def test_a_page_of_many_users_with_eight_systems_stays_small():
    prompts = {f"A{n}": "word " * 2000 for n in range(8)}
    long = [user(n, "t" * 200, prompts=prompts, ranks=[list(range(10))] * 8) for n in range(300)]
    found = packed(*long, max_bytes=users.MAX_BYTES)
    taken = found.data["scenarios"][0]["users"]
    assert 0 < len(taken) < 300 and f"{len(taken)} of 900 test events" in found.about
    made = page.as_html(Document(title="t", sections=[], users=found))
    assert len(made.encode()) < 15_000_000 / 1.5


def test_titles_are_written_once_and_a_user_too_large_alone_is_still_shown():
    found = packed(user(1), user(1), max_bytes=10**6)
    assert len(found.data["titles"]) == 30
    first, second = found.data["scenarios"][0]["users"]
    assert first == second and first["history"] == list(range(20))
    assert len(packed(user(1), user(2), max_bytes=1).data["scenarios"][0]["users"]) == 1


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-0.013, 0.4), (2.0, 2.0), (0.0, 0.0), (1, 20000)])
def test_marks_stand_inside_the_drawing_and_ticks_are_round(ends):
    low, high = ends
    marks = [Mark(label="m", interval=Interval((low + high) / 2, low, high), shown="")]
    chart = IntervalChart(title="t", marks=marks, reference=low)
    assert 0 <= chart.x(low) <= chart.x(high) <= charts.WIDTH
    ticks = chart.ticks()
    assert 2 <= len(ticks) <= 8 and all(0 <= x <= charts.WIDTH for x, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


def test_the_report_has_its_pictures_users_and_provenance(tmp_path):
    folders = make_folders(tmp_path)
    explained = tmp_path / "explained.jsonl"
    explained.write_text("".join(f"{json.dumps(line)}\n" for line in explanations(HOSTILE)))
    run(folders, tmp_path / "out", explanations=str(explained))
    text = (tmp_path / "out" / "report.html").read_text()
    elements = Elements(text)
    data = json.loads(elements.raw["script", "application/json"])
    assert [own["name"] for own in data["scenarios"]] == [
        "sequential",
        "product_search.specific",
        "personalized_search.specific",
    ]
    first = data["scenarios"][0]
    assert [own["name"] for own in first["systems"]][-1] == "model"
    assert first["total"] == len(first["users"]) == NUM_USERS
    hits = [own["ranks"][-1][own["target"]] == 1 for own in first["users"]]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rate = report["scenarios"]["sequential"]["test"]["model"]["hr@1"]["estimate"]
    assert sum(hits) / len(hits) == pytest.approx(rate)
    shown = first["users"][0]
    titles = [data["titles"][number] for number in shown["candidates"]]
    assert len(shown["history"]) == 7 and all(title in shown["prompts"]["A9"] for title in titles)
    captions = {" ".join(text.split()) for text in elements.texts}
    for caption in ("HR@1, paired differences", "Training loss", "model: NDCG@5 by part"):
        assert caption in captions
    (why,) = [own["explanation"] for own in first["users"] if "explanation" in own]
    assert (why["num_prompts"], data["titles"][why["items"][0]["title"]]) == (2, HOSTILE)
    assert "sha256 of candidates" in captions and html.escape(report["dataset"]) in text


def test_explanations_of_another_target_or_another_file_are_refused(tmp_path):
    (line,) = explanations("t")
    with pytest.raises(UserError, match="has another target in the explanations"):
        _explanation(line, SimpleNamespace(example_id="0:7", target_id=line["target_id"] + 1))
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="no file of explanations"):
        read_explanations(tmp_path / "x.jsonl")
