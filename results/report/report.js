"use strict";

// Elements are made here and texts are set as text: nothing that the data says can become markup.
function make(tag, text, ...children) {
  const element = document.createElement(tag);
  if (text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

// --- tables sort by column: numbers first, then texts, then what is not there

const NOTHING = new Set(["", "-"]);
const collator = new Intl.Collator("en", { numeric: true });

function key(cell) {
  const text = cell.textContent.trim();
  if (cell.dataset.v !== undefined) return [0, Number(cell.dataset.v), text];
  return [NOTHING.has(text) ? 2 : 1, 0, text];
}

function compare(a, b, sign) {
  if (a[0] !== b[0]) return a[0] - b[0];
  return sign * (a[1] - b[1] || collator.compare(a[2], b[2]));
}

function sort(table, column, order) {
  const body = table.tBodies[0];
  table.drawn ??= [...body.rows];
  let rows = table.drawn;
  if (order !== "none") {
    const sign = order === "ascending" ? 1 : -1;
    const keyed = rows.map((row) => [key(row.cells[column]), row]);
    rows = keyed.sort((a, b) => compare(a[0], b[0], sign)).map((pair) => pair[1]);
  }
  body.append(...rows);
}

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", head.textContent.trim() || "Row");
    button.type = "button";
    button.className = "sort";
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = NEXT[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
      sort(table, column, order);
    });
  });
}

document.querySelectorAll("table.data").forEach(makeSortable);

// --- a measured cell opens its record

const { panels, passages } = JSON.parse(document.getElementById("panels").textContent);
const dialog = document.getElementById("record");
const content = document.getElementById("record-content");

function facts(pairs) {
  const list = make("dl", null);
  for (const [name, value] of pairs) list.append(make("dt", name), make("dd", value));
  return list;
}

function metrics(rows) {
  const head = make("tr", null, ...["Metric", "Mean", "Low", "High", "n", "Interval"].map((name) => make("th", name)));
  const lines = rows.map(([name, meaning, ...numbers]) => {
    const first = make("th", name);
    first.scope = "row";
    if (meaning) first.append(make("small", meaning));
    return make("tr", null, first, ...numbers.map((number) => make("td", number)));
  });
  const box = make("div", null, make("table", null, make("thead", null, head), make("tbody", null, ...lines)));
  box.className = "scroll";
  box.tabIndex = 0;
  return box;
}

function example(it) {
  const mark = make("span", it.error ? "error" : it.right ? "right" : "wrong");
  mark.className = "mark";
  const item = make("li", null, make("p", it.question + " ", mark));
  item.append(facts([
    ["answer", it.error ?? (it.answer || "nothing")],
    ["gold", it.golds.join(" | ")],
    ...it.scores,
    ...it.usage,
  ]));
  if (it.passages === null) {
    item.append(make("p", "Its passages are not below the folders that this page was drawn from."));
  } else if (it.passages.length) {
    const texts = it.passages.map((place) => {
      const [title, text] = passages[place];
      return make("li", null, make("b", title), " " + text);
    });
    item.append(make("details", null, make("summary", `${texts.length} passages`), make("ol", null, ...texts)));
  }
  return item;
}

function show(panel) {
  document.getElementById("record-title").textContent = panel.title;
  content.replaceChildren();
  const section = (title, ...children) => content.append(make("h3", title), ...children);
  if (panel.metrics.length) section("Metrics (scores as fractions, 95 % intervals)", metrics(panel.metrics));
  if (panel.notes.length) section("Notes", make("ul", null, ...panel.notes.map((note) => make("li", note))));
  if (panel.said) section("Examples", make("p", panel.said), make("ol", null, ...panel.examples.map(example)));
  for (const [title, pairs] of panel.groups) if (pairs.length) section(title, facts(pairs));
  dialog.showModal();
  content.scrollTop = 0;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-panel]");
  if (button) show(panels[Number(button.dataset.panel)]);
  else if (event.target === dialog) dialog.close();  // the backdrop
});

// --- the ledger is filtered by words and verdict

const form = document.getElementById("ledger-filter");
const entries = [...document.querySelectorAll("#ledger-table tbody tr")];
const texts = entries.map((row) => row.textContent.toLowerCase());

function filter() {
  const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [form.elements.verdict.value, form.elements.source.value, form.elements.against.value];
  let shown = 0;
  entries.forEach((row, place) => {
    const own = [row.dataset.verdict, row.dataset.source, row.dataset.against];
    const fits = wanted.every((value, i) => !value || value === own[i]);
    row.hidden = !(fits && words.every((word) => texts[place].includes(word)));
    shown += !row.hidden;
  });
  document.getElementById("ledger-shown").value = `${shown} of ${entries.length}`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
filter();
