"""Which answers of a language model become texts, which are asked for again, and the rows."""

import dataclasses
import json

import pytest

from instructrec_jax.records import Item
from instructrec_jax.teacher.filters import judge, text_in
from instructrec_jax.teacher.outcomes import Collected, outcomes
from instructrec_jax.teacher.prompts import INTENTION, PREFERENCE, SECOND_INTENTION, read_prompt
from instructrec_jax.teacher.questions import Answer
from instructrec_jax.teacher.texts import INTENTIONS, PREFERENCES
from instructrec_jax.teacher.wanted import Wanted

TARGET = Item(item_id=0, raw_id="b0", title="Starlit Harbour: Deluxe", brand="Fenwick")
REVIEW = "I bought this for my son who loves to build ships on rainy days with his cousin"
GOOD = "I want something that keeps a child busy indoors"


def wanted(kind=INTENTION, *, user="u1", position=3, target=TARGET, lines=(REVIEW,)):
    prompt = read_prompt(kind)
    return Wanted(
        prompt=prompt,
        user_id=user,
        position=position,
        lines=lines,
        question=prompt.question(dict.fromkeys(prompt.slots, lines), model="m", temperature=1.0),
        target=target,
        fills=prompt.kind,
    )


def answer(text, key="k", **changes):
    plain = Answer(
        key=key,
        text=text,
        input_tokens=9,
        output_tokens=9,
        usd=0.0,
        model="m",
        date="2026-11-26",
        finish_reason="stop",
    )
    return dataclasses.replace(plain, **changes)


def said(text):
    return json.dumps({"text": text})


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (said(f"{GOOD}."), GOOD),
        (f"```json\n{said(GOOD)}\n```", GOOD),
        (f' "{GOOD}." ', GOOD),
        (f"Here is the text: {said(GOOD)} - good luck", GOOD),
        (said("I want\x07 a &amp; b  for &lt;three&gt;"), "I want a & b for <three>"),
    ],
)
def test_json_plain_text_and_fenced_answers_give_the_same_text(raw, text):
    assert judge(wanted(), answer(raw)).text == text


@pytest.mark.parametrize("raw", ['{"text": "I wan', "{}", "{1}", '{"other": "x"}', '{"text": 3}'])
def test_half_json_and_other_shapes_are_malformed(raw):
    assert text_in(raw) is None
    assert judge(wanted(), answer(raw)).reason == "malformed"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I'm sorry, but I can't assist with that request", "refusal"),
        ("As an AI language model, I have no wishes for this", "refusal"),
        ("Sure! I want something for my son and me", "refusal"),
        ("...", "empty"),
        ("I want toys", ""),
        ("I want", "short"),
        ("I want " + "a toy and " * 25, "over_long"),
        ("I want " + "extraordinarily " * 30, "over_long"),
        ("\u6211\u60f3\u8981\u4e00\u4e2a\u73a9\u5177\u7ed9\u6211\u513f\u5b50", "other_language"),
        ("Ich suche etwas Ruhiges zum Basteln", "other_language"),
        ("I want a gift, ask ada@example.com for the details", "personal_e-mail"),
        ("I want what is on www.shop.example today", "personal_url"),
        ("I want a gift, call 555-123-4567 for it", "personal_phone"),
        ("I pay for toys with 4111 1111 1111 1111", "personal_card"),
        ("I want what @ada_b has on her desk", "personal_handle"),
        ("I want it for my son who loves to build ships on", "copies_review"),
        ("I want Starlit Harbour for my son", "quotes_title"),
        ("I want something by Fenwick for my son", "quotes_title"),
        (GOOD, ""),
    ],
)
def test_an_answer_is_left_out_for_one_reason(text, reason):
    verdict = judge(wanted(), answer(said(text)))
    assert (verdict.reason, bool(verdict.text)) == (reason, not reason)
    assert verdict.is_worth_a_retry == (reason not in ("", "quotes_title"))


def test_the_end_of_an_answer_counts():
    assert judge(wanted(), answer(said(GOOD), finish_reason="length")).reason == "cut"
    no_room = judge(wanted(), answer(" ", finish_reason="length"))
    assert no_room.reason == "no_room" and not no_room.is_worth_a_retry
    assert judge(wanted(), answer(said(GOOD), finish_reason="content_filter")).reason == "refusal"
    assert judge(wanted(), answer("no", finish_reason="refusal")).reason == "refusal"


def test_a_teacher_may_be_silent_on_a_review_and_not_on_a_history():
    assert judge(wanted(), answer(said(""))).reason == "silent"
    assert not judge(wanted(), answer(said(""))).is_worth_a_retry
    assert judge(wanted(), answer("")).reason == "empty"
    assert judge(wanted(PREFERENCE), answer(said(""))).reason == "empty"


def test_a_preference_is_not_compared_with_the_item_that_comes_next():
    text = "The user likes Starlit Harbour by Fenwick and build ships on rainy days with his cousin"
    assert judge(wanted(PREFERENCE), answer(said(text))).text == text


@pytest.mark.parametrize("kind", [PREFERENCE, INTENTION, SECOND_INTENTION])
@pytest.mark.parametrize(
    "raw", [said(GOOD), "", said("I want"), "{", said("I want Starlit Harbour")]
)
def test_whether_a_question_is_asked_again_does_not_depend_on_the_label(kind, raw):
    other = Item(item_id=1, raw_id="b1", title="Red Kettle", brand="Osier")
    first, second = wanted(kind), wanted(kind, target=other)
    assert first.question.key == second.question.key
    verdicts = [judge(asked, answer(raw)).is_worth_a_retry for asked in (first, second)]
    assert verdicts[0] == verdicts[1]


class Kept(dict):
    """Answers in memory, by the text of each question and its attempt."""

    def answers(self, keys):
        return {key: dataclasses.replace(self[key], key=key) for key in keys if key in self}


def test_rows_come_from_first_answers_and_from_retries():
    about = [
        wanted(PREFERENCE, position=position, lines=("Red Kettle",) * position)
        for position in (1, 2, 3)
    ]
    behind = [wanted(), wanted(SECOND_INTENTION), wanted(user="u2"), wanted(user="u3")]
    behind[2] = dataclasses.replace(
        behind[2], question=dataclasses.replace(behind[2].question, user="another review")
    )
    kept = Kept({about[0].question.key: answer(said("The user likes red things"))})
    kept[about[1].question.key] = answer("{")
    kept[about[1].prompt.retry(about[1].question).key] = answer(
        "The user likes kettles a lot", date="2026-11-27"
    )
    kept[about[2].question.key] = kept[about[2].prompt.retry(about[2].question).key] = answer("{")
    kept[behind[0].question.key] = answer(said("I want Starlit Harbour"))
    kept[behind[1].question.key] = answer(said("The user seeks a quiet pastime"))
    collected = Collected()
    made = list(outcomes([*about, *behind[:3]], kept))
    tables = collected.tables(made)
    rows = [(r["position"], r["texts"], r["version"]) for r in tables[PREFERENCES].to_pylist()]
    assert rows == [
        (1, ["The user likes red things"], "m preference-1"),
        (2, ["The user likes kettles a lot"], "m preference-1"),
    ]
    (row,) = tables[INTENTIONS].to_pylist()
    assert (row["user_id"], row["texts"]) == ("u1", [])
    assert row["second_texts"] == ["The user seeks a quiet pastime"]
    assert row["version"] == "m intention-1 second-intention-1"
    assert collected.counts["preferences"] == 2 and collected.counts["second_intentions"] == 1
    assert collected.drops == {
        "preferences_malformed": 1,
        "intentions_quotes_title": 1,
        "intentions_unanswered": 1,
    }
    assert collected.written_by["m preference-1"]["date"] == "2026-11-27"
    assert [made[n].retry is not None for n in range(6)] == [False] * 6


def test_a_question_whose_first_answer_is_no_use_waits_for_its_retry():
    asked = wanted()
    (outcome,) = outcomes([asked], Kept({asked.question.key: answer("{")}))
    assert outcome.retry == asked.prompt.retry(asked.question)
    assert outcome.verdict.reason == "unanswered"
