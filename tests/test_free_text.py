"""Free text: what it asks for, its conditions, its script; and the request that it becomes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_toy import Served, save_served_model
from test_request_files import write

from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.data.titles import path_labels
from instructrec_jax.instructions.persona import third_person
from instructrec_jax.records import Item
from instructrec_jax.serving import intents
from instructrec_jax.serving.filters import CatalogueFields, without_numbers
from instructrec_jax.serving.free_text import TextReader
from instructrec_jax.serving.intents import IntentModel, intent_by_rule, words_of
from instructrec_jax.serving.languages import ScriptReader
from instructrec_jax.stages.score.ranked_file import RankedFile, rank_file
from instructrec_jax.teacher.extractive import ExtractiveTeacher
from instructrec_jax.tokenizer import check_vocabulary

ITEMS = [
    Item(item_id=n, raw_id=f"r{n}", title=title, category=category, brand=brand)
    for n, (title, category, brand) in enumerate(
        [
            ("Red Kite (2014)", "Toys, Kites, Plain", "Fenwick"),
            ("Blue Kite (1999)", "Toys, Kites", "Anna Harp"),
            ("Moon Doll", "Toys, Dolls, Plain", "Fenwick"),
            ("Steam (1993)", "Toys, Trains", ""),
        ]
    )
]
FIELDS = CatalogueFields(ITEMS)
WORDS = words_of([f"{item.title} {item.category} {item.brand}" for item in ITEMS])


def test_years_that_few_titles_have_are_told_and_leave_nothing_out():
    few = CatalogueFields([*ITEMS[2:], *ITEMS[2:3]])  # one title of three has a year
    allowed, (applied,) = few.allowed(few.named_in("I want something from 1993"))
    assert allowed.all() and applied.num_removed == 0
    assert applied.problem == "only 1 of 3 items have a year that is known"


@pytest.mark.parametrize(
    ("text", "left", "removed"),
    [
        ("I want a red kite for my son", [0, 1], [2]),
        ("plain kites by Fenwick", [0], [2, 1, 0]),
        ("kites or dolls from 2014", [0], [1, 2]),
        ("something by anna harp", [1], [3]),
        ("anything but kites", [2, 3], [2]),
        ("show me trains from the 1990s, no kites", [3], [3, 0, 0]),
        ("by fenwick or by Anna Harp", [0, 1, 2], [1]),
        ("kites not by Fenwick", [1], [2, 1]),
        ("something before 2000", [1, 3], [2]),
        ("from 1990 to 1995", [3], [3]),
        ("kites after 1999", [0], [2, 1]),
        ("I want something to go with my kite", [0, 1, 2, 3], []),
        ("toys", [0, 1, 2, 3], []),  # all items are
        ("a kite under 20", [0, 1], [2]),
    ],
)
def test_conditions_leave_the_items_that_meet_them(text, left, removed):
    mask, applied = FIELDS.allowed(FIELDS.named_in(text))
    assert np.flatnonzero(mask).tolist() == left
    assert [each.num_removed for each in applied] == removed


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("kites under 20 dollars", None, 20),
        ("kites under $20", None, 20),
        ("dolls between 5 and 7.50 euros", 5, 7.5),
        ("over 3 pounds", 3, None),
    ],
)
def test_a_price_is_read_and_not_applied_where_there_are_none(text, least, most):
    *_, condition = FIELDS.named_in(text)
    assert (condition.field, condition.least, condition.most) == ("price", least, most)
    _, (*_, applied) = FIELDS.allowed([condition])
    assert "no item has a price" in applied.problem and applied.num_removed == 0
    assert without_numbers(text, [applied]) == text


def test_candidates_that_nobody_knows_stay_and_are_counted():
    fields = CatalogueFields([*ITEMS, Item(item_id=9, raw_id="", title="Unknown")])
    mask, (applied,) = fields.allowed(FIELDS.named_in("kites"), keeps_unknown=True)
    assert mask.tolist() == [True, True, False, False, True] and applied.num_unknown == 1


@given(st.text(max_size=60) | st.lists(st.sampled_from(sorted(WORDS)), max_size=8).map(" by ".join))
def test_no_text_breaks_the_reading(text):
    mask, applied = FIELDS.allowed(FIELDS.named_in(text))
    removed = sum(each.num_removed for each in applied)
    assert mask.sum() == len(ITEMS) - removed
    assert intent_by_rule(text, FIELDS, WORDS).intent in (*intents.INTENTS, "")
    assert without_numbers(text, applied) is not None


def test_rules_tell_the_texts_of_the_offline_teacher_apart(toy_prepared):
    """What the rules are for: the teacher's own texts, and people's plain words."""
    data, teacher = read_prepared(toy_prepared), ExtractiveTeacher()
    fields, known = CatalogueFields(data.items), words_of([item.title for item in data.items])
    histories = [[data.items[n] for n in history.item_ids] for history in data.histories[:20]]
    texts = [("P2", text) for history in histories for text in teacher.preferences(history)]
    reviews = ["A gift for my father", "I needed something for my sister.", "Great for the garden"]
    for review in reviews:
        found = teacher.intentions(review, data.items[0])
        texts += [("I1", text) for text in (*found.vague, *found.second_vague)]
    texts += [("I2", item.category) for item in data.items]
    texts += [pair for pair in intents.CHECKS if pair[0] != "I2"]
    wrong = [
        (intent, text)
        for intent, text in texts
        if intent_by_rule(text, fields, known).intent != intent
    ]
    assert not wrong
    assert intent_by_rule("zweifel", fields, known).intent == ""


def likelihoods(model, lead):
    """What a model gives that makes each check text likelier by its own intent's statements."""
    truth = [intent for intent, _ in intents.CHECKS]
    owners = [intent for intent, _ in model._prompts]
    rows = [[lead(n) * (own == o) for n, own in enumerate(truth)] for o in owners]
    return np.array([*rows, [0.0] * len(truth)], np.float32)


def test_a_model_is_asked_only_where_it_is_measured_to_be_good(toy_records):
    model = IntentModel(vocabulary(toy_records), 24)
    assert {len(each.candidates) for each in model.requests(["a", "b c"])} == {2}
    model.calibrate(likelihoods(model, lambda n: 1.0))
    assert model.threshold == 1.0 and "1.00 of 48" in model.measured
    guesses = list(model.guesses(likelihoods(model, lambda n: 2.0)))
    assert [guess.intent for guess in guesses] == [intent for intent, _ in intents.CHECKS]
    unsure = model.guesses(likelihoods(model, lambda n: 0.5))
    assert {guess.intent for guess in unsure} == {""}
    # Right where it is sure, wrong elsewhere: the threshold parts the two.
    model.calibrate(likelihoods(model, lambda n: 3.0 if n % 4 else -1.0))
    assert model.threshold is not None and model.threshold > 1.0
    noise = np.random.default_rng(0).normal(size=likelihoods(model, lambda n: 0).shape)
    model.calibrate(noise)
    assert model.threshold is None and "rules read" in model.measured


def vocabulary(toy_records):
    return check_vocabulary(toy_records / "toy" / "vocabulary" / "sentencepiece.model")


def test_scripts_that_a_vocabulary_has_not_are_named(toy_records):
    reader = ScriptReader(vocabulary(toy_records))
    found = reader.unread("воздушный змей")
    assert found.is_too_much and found.message == (
        "the text is in Cyrillic script, of which this model's vocabulary has none"
    )
    assert "Korean" in reader.unread("연을 원해요").message
    some = reader.unread("a kite for my son, воз")
    assert 0 < some.share < 0.5 and not some.is_too_much and "some letters (3)" in some.message
    assert reader.unread("a kite for my son 12 🦊") == (0.0, "")


def test_turns_are_read_as_far_as_there_is_room_the_newest_first(toy_records):
    reader = TextReader(vocabulary(toy_records), 256, 24)
    reading = reader.begin(["old " * 60, "I love tea. It is hot", "red"], "a kite; blue")
    assert reading.num_turns_dropped == 1
    assert [(part.text, part.turn) for part in reading.parts] == [
        ("I love tea", 0),
        ("It is hot", 0),
        ("red", 1),
        ("a kite", 2),
        ("blue", 2),
    ]
    assert reader.begin(["x"] * 9, "a kite").num_turns_dropped == 4
    assert reader.begin([], "long " * 200).num_turns_dropped == 0  # the text itself stays
    parts = reader.begin([], "I love puzzles and want a kite, but I need a doll").parts
    assert [part.text for part in parts] == ["I love puzzles", "I want a kite", "I need a doll"]


@pytest.fixture(scope="module")
def shop(toy_records, toy_prepared, tmp_path_factory):
    """A service with the invented catalogue, and what it serves."""
    root = tmp_path_factory.mktemp("free_text")
    model = save_served_model(toy_records, root / "model")
    with Served(model, root / "state", prepared_dir=str(toy_prepared)) as served:
        items = read_prepared(toy_prepared).items
        yield SimpleNamespace(served=served, items=items, model=model, root=root)


def asked(shop, body, path="/v1/recommend"):
    answer = shop.served.ask("POST", path, body)
    assert answer.status == 200, answer.text
    return answer.json


def equal(ours, theirs):
    assert [each["candidate"] for each in ours] == [each["candidate"] for each in theirs]
    for field in ("score", "log_likelihood"):
        np.testing.assert_allclose(
            [each[field] for each in ours], [each[field] for each in theirs], rtol=1e-5
        )


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/recommend"])
def test_a_ranking_by_text_is_that_of_the_request_which_it_tells(shop, path):
    kind = path_labels(shop.items[0].category)[1]
    body = {"history": [shop.items[1].title], "text": f"I love tea. I want {kind} for my son"}
    body |= {"context": "spring"}
    if path == "/v1/rank":
        body["candidates"] = [item.title for item in shop.items[:8]]
    found = asked(shop, body, path)
    resolved = found["resolved"]
    assert [(s["intent"], s["decided_by"]) for s in resolved["sentences"]] == [
        ("P2", "rule"),
        ("I2", "rule"),
    ]
    row = resolved["request"]
    assert row["preference"] == "The user loves tea" and row["context"] == "spring"
    assert row["intention"] == third_person(f"I want {kind} for my son").replace(
        "the user's", "their"
    )
    assert resolved["template"] == found["template"] and resolved["cell"].startswith("<P1,")
    explicit = asked(shop, row | {"template": found["template"]}, "/v1/rank")
    equal(found["candidates"], explicit["candidates"][: len(found["candidates"])])
    rows, output = write(shop.root / "row.jsonl", [row]), shop.root / "ranked.jsonl"
    output.unlink(missing_ok=True)
    rank_file(
        RankedFile(
            model=str(shop.model), input=str(rows), output=str(output), template=found["template"]
        )
    )
    scored = json.loads(output.read_text())["candidates"]
    equal(found["candidates"], scored[: len(found["candidates"])])
    (condition,) = resolved["conditions"]
    assert condition["values"] == [kind] and condition["num_removed"] > 0
    titles = {item.title: item for item in shop.items}
    shown = [titles[each["candidate"]] for each in found["candidates"]]
    assert shown and all(kind in path_labels(item.category) for item in shown)


def test_each_kind_of_text_has_its_template_and_cell(shop):
    kind, history = path_labels(shop.items[0].category)[1], [shop.items[1].title]
    cells = {}
    for text in (f"{kind}", "I want something for my son", "I mostly go for tea", "surprise me"):
        for own in ([], history):
            answer = asked(
                shop, {"text": text, "num_candidates": 2} | ({"history": own} if own else {})
            )
            cells[text, bool(own)] = answer["resolved"].get("cell"), answer.get("template")
    assert cells == {
        (kind, False): ("<P0,I2,T3>", "B7.specific"),
        (kind, True): ("<P1,(P2),I2,T3>", "C10.specific"),
        ("I want something for my son", False): ("<P0,I1,T3>", "B7.second_vague"),
        ("I want something for my son", True): ("<P1,(P2),I1,T3>", "C10.second_vague"),
        ("I mostly go for tea", False): ("<P2,I0,T3>", "B7.preference"),
        ("I mostly go for tea", True): ("<P1,P2,I0,T3>", "C10.preference"),
        ("surprise me", False): (None, None),
        ("surprise me", True): ("<P1,(P2),I0,T3>", "A7"),
    }


def test_where_nobody_is_sure_more_is_asked_for_and_nothing_ranked(shop):
    brand = shop.items[0].brand
    kinds = {path_labels(item.category)[1] for item in shop.items if item.brand == brand}
    other = next(iter({path_labels(item.category)[1] for item in shop.items} - kinds))
    for text, says in {
        "zweifel": "neither a preference nor an intention",
        "surprise me": "there is no history",
        f"{other} by {brand}": "0 of the 48 items of the catalogue meet all of",
        "воздушный змей": "Cyrillic script, of which this model's vocabulary has none",
        "\u200b": "the text is empty",
    }.items():
        found = asked(shop, {"text": text})
        assert found["candidates"] == [] and "template" not in found
        assert says in found["tell_me_more"], found
        assert "request" not in found["resolved"]
    (unknown,) = asked(shop, {"text": "zweifel"})["resolved"]["sentences"]
    assert "intent" not in unknown
    price = asked(shop, {"text": f"{other} under 20 dollars"})["resolved"]["conditions"]
    assert [each["is_applied"] for each in price] == [True, False] and price[1]["problem"]


def test_earlier_turns_join_what_is_wanted_and_later_conditions_replace_theirs(shop):
    first, second = sorted({path_labels(item.category)[1] for item in shop.items})[:2]
    turns = ["I love tea", f"I want {first}"]
    found = asked(shop, {"turns": turns, "text": f"I want {second}"})["resolved"]
    assert [each["values"] for each in found["conditions"]] == [[second]]
    wanted = f"The user loves tea. The user wants {first}. The user wants {second}"
    assert (
        found["request"]["intention"] == wanted
    )  # no template shows a preference without a history
    assert found["num_turns_dropped"] == 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"text": "kites", "intention": "x"}, "leave out either"),
        ({"text": ""}, "at least 1 character"),
        ({"text": "x" * 4001}, "at most 4000"),
        ({"turns": ["x"]}, "turns and no text"),
        ({"text": "kites", "turns": "x"}, "valid array"),
    ],
)
def test_mistakes_are_told(shop, body, says):
    for path in ("/v1/recommend", "/v1/rank"):
        sent = body | ({"candidates": ["a", "b"]} if path == "/v1/rank" else {})
        answer = shop.served.ask("POST", path, sent)
        assert answer.status == 422 and says in answer.json["error"]["message"], answer.text


def test_a_service_says_who_reads_free_text(shop):
    (model,) = shop.served.ask("GET", "/v1/models").json["data"]
    assert "rules read free text" in model["free_text"]  # of a model that learnt nothing


def test_a_model_that_is_good_at_it_is_asked(shop, monkeypatch):
    model = shop.served.service.engines[0].reader.model
    monkeypatch.setattr(model, "threshold", 0.0)
    (sentence,) = asked(shop, {"text": "zweifel"})["resolved"]["sentences"]
    assert sentence["decided_by"] == "model" and sentence["intent"]
