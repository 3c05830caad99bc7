"use strict";

const at = (name) => document.getElementById(name);
const lines = (name) => at(name).value.split("\n").map((line) => line.trim()).filter(Boolean);
const SVG = "http://www.w3.org/2000/svg";
const THUMB = "M2 10h4v11H2zM8 10l4-8c2 0 3 1 2 3l-1 4h7a2 2 0 0 1 2 2l-2 8a2 2 0 0 1-2 2H8z";
const INTENTS = {
  P2: "a lasting preference", I0: "nothing in particular", I1: "something wanted", I2: "a certain kind of item",
};
let hasCatalogue = false;
let turns = [];

// The address is built anew: that of the page may hold the token.
async function ask(path, body) {
  const answer = await fetch(new URL(path, location.origin), {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body && JSON.stringify(body),
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error.message);
  return found;
}

function say(text) {
  at("status").textContent = text;
}

function made(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

// Drawn, since not every machine has letters of thumbs.
function thumbShape(isDown) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", THUMB);
  if (isDown) path.setAttribute("transform", "rotate(180 12 12)");
  svg.append(path);
  return svg;
}

function thumb(shown, each, verdict, words) {
  const button = made("button", "thumb", "");
  button.append(thumbShape(verdict === "down"));
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-label", `${words}: ${each.candidate}`);
  button.addEventListener("click", async () => {
    try {
      await ask("/v1/feedback", {
        impression_id: shown.impression_id, index: each.index, verdict,
      });
      for (const other of button.parentElement.querySelectorAll("button")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      say(`Noted: ${words.toLowerCase()}, ${each.candidate}`);
    } catch (error) {
      say(error.message);
    }
  });
  return button;
}

function card(shown, each, best) {
  const item = document.createElement("li");
  const what = made("div", "what", "");
  what.append(made("div", "title", each.candidate));
  const times = Math.exp(each.score - best);
  const unit = { sum: "", mean: ", by word part", char: ", by letter" }[shown.normaliser];
  const reason = times === 1
    ? "the model's first choice"
    : `${Math.round(100 * times)} % as likely as the first choice${unit}`;
  what.append(made("div", "reason", reason));
  item.append(what);
  item.append(thumb(shown, each, "up", "Good"));
  item.append(thumb(shown, each, "down", "Not good"));
  return item;
}

// What the service made of the text: each sentence, each condition, what it left out.
function understanding(found) {
  const told = found.sentences.map((each) => each.intent
    ? `\u201c${each.text}\u201d is ${INTENTS[each.intent]}: ${each.why}`
    : `\u201c${each.text}\u201d was not understood`);
  told.push(...found.conditions.map((each) => each.is_applied
    ? `\u201c${each.said}\u201d left out ${each.num_removed}`
    : `\u201c${each.said}\u201d was not applied: ${each.problem}`));
  if (found.num_turns_dropped) told.push(`${found.num_turns_dropped} earlier texts were left out`);
  return [...told, ...found.notes];
}

function showTurns() {
  at("turns").textContent = turns.map((each) => `\u201c${each}\u201d`).join(", ");
  at("before").hidden = !turns.length;
}

function show(shown) {
  const told = shown.resolved ? understanding(shown.resolved) : [];
  at("understood").replaceChildren(...told.map((each) => made("li", "told", each)));
  if (shown.tell_me_more) {
    say(shown.tell_me_more);
    return;
  }
  const best = Math.max(...shown.candidates.map((each) => each.score));
  at("results").replaceChildren(...shown.candidates.map((each) => card(shown, each, best)));
  at("instruction").textContent = shown.explanation.instruction;
  at("why").hidden = false;
  say(`${shown.candidates.length} found, best first.`);
}

async function rank(event) {
  event.preventDefault();
  const body = { record: true, explain: true, top_n: 10 };
  const text = at("text").value.trim();
  turns = turns.filter((each) => each !== text).slice(-5);
  for (const [name, value] of Object.entries({
    text, history: lines("history"), user_id: at("user").value.trim(), turns: text ? turns : [],
  })) {
    if (value.length) body[name] = value;
  }
  if (!hasCatalogue) body.candidates = lines("candidates");
  at("ask").disabled = true;
  at("results").replaceChildren();
  at("understood").replaceChildren();
  at("why").hidden = true;
  say("Ranking\u2026");
  try {
    show(await ask(hasCatalogue ? "/v1/recommend" : "/v1/rank", body));
    if (text) turns.push(text);
    showTurns();
    at("text").select();
  } catch (error) {
    say(error.message);
  } finally {
    at("ask").disabled = false;
  }
}

at("form").addEventListener("submit", rank);
at("anew").addEventListener("click", () => {
  turns = [];
  showTurns();
  at("text").value = "";
  at("text").focus();
});
ask("/v1/models").then((found) => {
  hasCatalogue = found.data[0].has_catalogue;
  at("choices").hidden = hasCatalogue;
}).catch((error) => say(error.message));
