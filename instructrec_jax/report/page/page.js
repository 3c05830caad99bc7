"use strict";
// Makes an element; texts are set as texts, never as HTML.
const make = (name, properties = {}, ...children) => {
  const found = Object.assign(document.createElement(name), properties);
  found.append(...children);
  return found;
};
const byId = (id) => document.getElementById(id);

// The number that a cell begins with, such as .484 of ".484 .452-.516"; its text where it has none.
const keyOf = (text) => {
  const found = text.replace("<", "").match(/^(?:p )?([+-]?\d*\.?\d+)/);
  return found ? Number(found[1]) : text;
};
// Upwards by sign 1, downwards by -1; what has no number comes after the numbers either way.
const compare = (a, b, sign) =>
  typeof a !== typeof b ? (typeof a === "number" ? -1 : 1)
    : sign * (typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0);

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [keyOf(row.cells[column].textContent), row]);
      body.append(...rows.sort((a, b) => compare(a[0], b[0], sign)).map(([, row]) => row));
    });
  });
}
function tableOf(header, rows) {
  const head = make("tr", {}, ...header.map((name) => make("th", { scope: "col" }, name)));
  return [make("thead", {}, head), make("tbody", {}, ...rows)];
}
for (const table of document.querySelectorAll("main table")) if (table.tHead) sortable(table);
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling;
    getSelection().selectAllChildren(text); // where copying is refused, the text is selected
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
  });
}

function users(data) {
  const [scenario, search, order, found] = ["scenario", "search", "order", "found"].map(byId);
  const title = (index) => data.titles[index];
  const chosen = () => data.scenarios[scenario.value];
  const rank = (user, system) => user.ranks[system][user.target];
  const textOf = (user) => {
    const titles = [...user.history, ...user.candidates].map(title);
    return [user.id, user.user, user.query, ...Object.values(user.prompts), ...titles].join("\n").toLowerCase();
  };

  function list() {
    const { users, systems } = chosen();
    const words = search.value.toLowerCase().trim();
    const [kind, system] = order.value.split(" ");
    const shown = users.filter((user) => !words || textOf(user).includes(words));
    const spread = (user) => {
      const ranks = systems.map((_, number) => rank(user, number));
      return Math.max(...ranks) - Math.min(...ranks);
    };
    if (kind === "best") shown.sort((a, b) => rank(a, system) - rank(b, system));
    if (kind === "worst") shown.sort((a, b) => rank(b, system) - rank(a, system));
    if (kind === "spread") shown.sort((a, b) => spread(b) - spread(a));
    found.textContent = `${shown.length} of the ${users.length} users on this page`;
    const rows = shown.map((user) => {
      const button = make("button", { type: "button" }, user.id);
      button.addEventListener("click", () => show(user));
      const cells = [title(user.candidates[user.target]), ...systems.map((_, n) => rank(user, n))];
      return make("tr", {}, make("th", { scope: "row" }, button), ...cells.map((cell) => make("td", {}, String(cell))));
    });
    byId("list").replaceChildren(...tableOf(["example", "target", ...systems.map((s) => `rank by ${s.name}`)], rows));
    sortable(byId("list"));
  }

  // What each history item adds for the target, the most telling first.
  function explanation(found) {
    const signed = (value) => (value < 0 ? "" : "+") + value.toFixed(3);
    const rows = found.items.map((item) => {
      const likeness = item.likeness === null ? "-" : item.likeness.toFixed(2);
      const cells = [signed(item.margin), signed(item.log_likelihood), item.rank, likeness];
      const name = make("th", { scope: "row" }, make("bdi", {}, title(item.title)));
      return make("tr", {}, name, ...cells.map((cell) => make("td", {}, String(cell))));
    });
    const header = ["history item", "margin", "log-likelihood", "rank without it", "likeness to the target"];
    const table = make("table", {}, ...tableOf(header, rows));
    const label = "What each history item adds for the target";
    return [
      make("h4", {}, label),
      make("p", {}, `Template ${found.template}: the target has rank ${found.rank}, log-likelihood ${found.log_likelihood.toFixed(3)} and margin ${signed(found.margin)}, the natural log of its odds among the candidates. Each item's figures are what is lost without it; ${found.num_prompts} prompts were scored.`),
      ...(found.reasoning ? [make("p", {}, "The model writes: ", make("bdi", {}, found.reasoning))] : []),
      make("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: label }, table),
    ];
  }

  function show(user) {
    const { systems } = chosen();
    const numbers = systems.map((_, n) => n).reverse(); // baselines stand first, and matter least
    const number = (value) => (value === null || value === undefined ? "-" : value.toFixed(3));
    const last = user.ranks.at(-1); // the best first by the last system
    const order = user.candidates.map((_, n) => n).sort((a, b) => last[a] - last[b]);
    const rows = order.map((n) => {
      const isTarget = n === user.target;
      const cells = numbers.flatMap((s) => {
        const sum = systems[s].normaliser === "sum" ? [] : [number(user.log_likelihoods[s][n])];
        return [user.ranks[s][n], number(user.values[s][n]), ...sum];
      });
      const name = make("th", { scope: "row" }, title(user.candidates[n]) + (isTarget ? " (target)" : ""));
      return make("tr", { className: isTarget ? "hit" : "" }, name, ...cells.map((cell) => make("td", {}, String(cell))));
    });
    const header = numbers.flatMap((n) => {
      const { name, normaliser } = systems[n];
      const values = normaliser === "sum" ? ["log-likelihood or score"] : [normaliser, "log-likelihood"];
      return [`${name}: rank`, ...values];
    });
    const table = make("table", {}, ...tableOf(["candidate", ...header], rows));
    const prompts = Object.entries(user.prompts).map(([template, text]) =>
      make("details", {}, make("summary", {}, `Prompt by template ${template}`), make("pre", { tabIndex: 0 }, text)));
    const history = make("ol", {}, ...user.history.map((index) => make("li", {}, make("bdi", {}, title(index)))));
    const why = user.explanation ? explanation(user.explanation) : [];
    const one = byId("one");
    one.replaceChildren(
      make("h3", {}, `Example ${user.id}`),
      ...(user.query ? [make("p", {}, "Asked for: ", make("bdi", {}, user.query))] : []),
      ...(user.history.length ? [make("h4", {}, "History, the latest last"), history] : []),
      ...why,
      ...prompts, make("h4", {}, "Candidates"),
      make("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: "Candidates" }, table));
    for (const each of one.querySelectorAll("table")) sortable(each);
    one.hidden = false;
    one.focus();
  }

  function open() {
    const options = [["", "as drawn"], ["spread", "systems disagree most"]];
    chosen().systems.forEach((s, n) => options.push([`best ${n}`, `${s.name}: best rank first`], [`worst ${n}`, `${s.name}: worst rank first`]));
    order.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
    byId("one").hidden = true;
    list();
  }

  scenario.replaceChildren(...data.scenarios.map((s, n) => make("option", { value: n }, `${s.name} (${s.users.length} of ${s.total})`)));
  scenario.addEventListener("change", open);
  search.addEventListener("input", list);
  order.addEventListener("change", list);
  byId("choice").addEventListener("submit", (event) => event.preventDefault());
  byId("choice").hidden = false;
  open();
}
if (byId("data")) users(JSON.parse(byId("data").textContent));
