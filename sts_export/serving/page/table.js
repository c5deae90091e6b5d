// Answers to one question side by side: what each budget cost, as the server measured it.

const NONE = "–";

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function number(value) {
  if (!Number.isFinite(value)) return NONE;
  return value >= 100 ? String(Math.round(value)) : value.toFixed(1);
}

export function tokensInWords(visual) {
  return visual ? [visual.total, visual.stage1, visual.stage2].join("\u2009→\u2009") : NONE;
}

export function budgetInWords(budget) {
  return budget?.endsWith("%") ? `${budget.slice(0, -1)} %` : budget ?? NONE;
}

// The last answer of the largest budget: what others save, they save of its time.
export function reference(runs) {
  const timed = runs.filter((run) => Number.isFinite(run.timings?.first_token));
  const largest = Math.max(...timed.map((run) => run.rank));
  return timed.filter((run) => run.rank === largest).at(-1);
}

export function saved(run, against) {
  const own = run.timings?.first_token;
  if (!against || run.rank === against.rank || !Number.isFinite(own) || !(against.timings.first_token > 0)) return NONE;
  const percent = Math.round(100 * (1 - own / against.timings.first_token));
  return `${String(percent).replace("-", "−")} %`;
}

// What the budget of a comparison is: savings are of pruning as a whole only against all tokens.
function inWords(against, { budgets, unpruned }) {
  const budget = budgetInWords(against.budget);
  if (against.rank < budgets.length - 1) return `at budget ${budget}, the largest asked; this bundle can have more`;
  return unpruned ? `without pruning (budget ${budget})` : `at budget ${budget}, the largest that this bundle runs`;
}

// Rows of a table, largest budget first; show(run) is called when a row is chosen; info is the server's.
export function fillTable(table, runs, shown, show, info) {
  const against = reference(runs);
  for (const body of [...table.tBodies]) body.remove();
  for (const run of [...runs].sort((one, other) => other.rank - one.rank)) {
    const body = table.createTBody();
    const row = body.insertRow();
    const budget = budgetInWords(run.budget);
    const label = `${budget}: show this answer`;
    const pressed = String(run === shown);
    const button = element("button", budget, { type: "button", "aria-pressed": pressed, "aria-label": label });
    button.addEventListener("click", () => show(run));
    row.appendChild(element("th", "", { scope: "row" })).appendChild(button);
    row.append(
      element("td", tokensInWords(run.visual)),
      element("td", Number.isFinite(run.timings?.first_token) ? `${number(run.timings.first_token)} ms` : NONE),
      element("td", number(1000 / (run.timings?.decode_per_token || NaN))),
      element("td", saved(run, against), { class: "saved" }),
    );
    const said = body.insertRow().appendChild(element("td", "", { class: "said", colspan: "5" }));
    said.appendChild(element("span", run.text.trim() || "(nothing)", { dir: "auto" }));
  }
  const time = number(against?.timings.first_token);
  const isCompared = against && runs.some((run) => run.rank !== against.rank);
  table.caption.textContent = isCompared
    ? `Saved: share of the ${time} ms to the first token ${inWords(against, info)}`
    : "Ask again at another budget to compare";
}
