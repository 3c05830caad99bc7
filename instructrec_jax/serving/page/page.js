"use strict";

const at = (name) => document.getElementById(name);
const lines = (name) => at(name).value.split("\n").map((line) => line.trim()).filter(Boolean);
const SVG = "http://www.w3.org/2000/svg";
const THUMB = "M2 10h4v11H2zM8 10l4-8c2 0 3 1 2 3l-1 4h7a2 2 0 0 1 2 2l-2 8a2 2 0 0 1-2 2H8z";
let hasCatalogue = false;

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

function show(shown) {
  const best = Math.max(...shown.candidates.map((each) => each.score));
  at("results").replaceChildren(...shown.candidates.map((each) => card(shown, each, best)));
  at("instruction").textContent = shown.explanation.instruction;
  at("why").hidden = false;
  say(`${shown.candidates.length} found, best first.`);
}

async function rank(event) {
  event.preventDefault();
  const body = { record: true, explain: true, top_n: 10 };
  for (const [name, value] of Object.entries({
    intention: at("intention").value.trim(), history: lines("history"),
    user_id: at("user").value.trim(),
  })) {
    if (value.length) body[name] = value;
  }
  if (!hasCatalogue) body.candidates = lines("candidates");
  at("ask").disabled = true;
  at("results").replaceChildren();
  at("why").hidden = true;
  say("Ranking\u2026");
  try {
    show(await ask(hasCatalogue ? "/v1/recommend" : "/v1/rank", body));
  } catch (error) {
    say(error.message);
  } finally {
    at("ask").disabled = false;
  }
}

at("form").addEventListener("submit", rank);
ask("/v1/models").then((found) => {
  hasCatalogue = found.data[0].has_catalogue;
  at("choices").hidden = hasCatalogue;
}).catch((error) => say(error.message));
