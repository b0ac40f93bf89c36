// The page of all runs: asks the service for them again and again, and shows those that the reader has chosen.

import { byId, el, find } from "./dom.js";
import { capital, count } from "./format.js";
import { comparisonOf, filtered, ordered, ORDERS, perState, valuesOf } from "./shelf_order.js";
import { COLUMNS, rowsOf } from "./shelf_rows.js";

/** @import { Choice, Run } from "./shelf_order.js" */

const EVERY = 4000; // milliseconds between two questions
const MOST = 12; // runs on one page

/** @type {Choice} */
const choice = { search: "", state: "", model: "", data: "", sort: "changed:down" };
const DEFAULTS = { ...choice };

/** @type {Run[]} */
let runs = [];
let output = "";
/** @type {Set<string>} */
const ticked = new Set();
/** @type {Map<string, { text: string, body: HTMLElement }>} */
const drawn = new Map(); // by name: rows that stay while nothing of their run changes, so that a reader's focus stays too

function readChoice() {
  ticked.clear();
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (name === "tick") ticked.add(text);
    else if (name in choice) choice[name] = text;
  }
}

function writeChoice() {
  const said = new URLSearchParams(Object.entries(choice).filter(([name, value]) => value !== DEFAULTS[name]));
  for (const name of ticked) said.append("tick", name);
  history.replaceState(null, "", said.size ? `#${said}` : "#");
}

/**
 * @param {string} name
 * @param {string} value
 */
function choose(name, value) {
  choice[name] = value;
  writeChoice();
  draw();
}

function tick(name, on) {
  if (on) ticked.add(name);
  else ticked.delete(name);
  writeChoice();
  drawTicked();
}

function draw() {
  const shown = ordered(filtered(runs, choice), choice.sort);
  const running = runs.filter((run) => run.state === "running").length;
  byId("subtitle").textContent = `${count(runs.length, "run")} in ${output}${running ? `, ${running} at work` : ""}`;
  document.title = running ? `Runs (${running} at work)` : "Runs";
  drawStates();
  drawSelect("model");
  drawSelect("data");
  drawHead();
  drawRows(shown);
  byId("filters").hidden = byId("states").hidden = !runs.length;
  const empty = byId("empty");
  empty.hidden = shown.length > 0;
  empty.replaceChildren(
    runs.length ? "No run matches. " : `There is no run in ${output} yet: a sweep whose --output is this folder appears here.`,
  );
  if (runs.length && !shown.length)
    empty.append(el("button", { type: "button", class: "link", onclick: showAll }, "Show all runs"));
  byId("table").hidden = !shown.length;
  drawTicked();
}

function showAll() {
  Object.assign(choice, { ...DEFAULTS, sort: choice.sort });
  byId("search").value = "";
  writeChoice();
  draw();
}

function drawStates() {
  const all = [/** @type {[string, number]} */ (["", runs.length]), ...perState(runs)];
  const kept = document.activeElement?.getAttribute("data-state");
  byId("states").replaceChildren(
    ...all.map(([state, number]) =>
      el(
        "button",
        {
          type: "button",
          class: choice.state === state ? "chosen" : "",
          "aria-pressed": String(choice.state === state),
          "data-state": state || "all",
          onclick: () => choose("state", choice.state === state ? "" : state),
        },
        state ? el("span", { class: `dot ${state}` }) : null,
        `${state ? capital(state) : "All"} `,
        el("span", { class: "muted" }, String(number)),
      ),
    ),
  );
  if (kept) find(`#states [data-state="${kept}"]`)?.focus();
}

/** @param {"model" | "data"} field */
function drawSelect(field) {
  const values = valuesOf(runs, field);
  const select = byId(field);
  byId(`${field}-label`).hidden = values.length < 2 && !choice[field];
  const wanted = ["", ...new Set([...values, ...(choice[field] ? [choice[field]] : [])])];
  if (wanted.join("\n") !== [...select.options].map((o) => o.value).join("\n"))
    select.replaceChildren(...wanted.map((value) => el("option", { value }, value || "any")));
  select.value = choice[field];
}

function drawHead() {
  const [key, way] = choice.sort.split(":");
  const head = byId("head");
  if (!head.childNodes.length) {
    head.append(el("td", { class: "tick" }));
    for (const column of COLUMNS) {
      const button = el(
        "button",
        { type: "button", onclick: () => sortBy(column.key) },
        column.title,
        el("span", { class: "way" }),
      );
      head.append(el("th", { scope: "col", class: column.class ?? "", "data-key": column.key }, button));
    }
    byId("sort").append(...Object.entries(ORDERS).map(([name, { title }]) => el("option", { value: name }, title)));
  }
  for (const cell of head.querySelectorAll("th")) {
    const own = cell.dataset.key === key;
    cell.setAttribute("aria-sort", own ? (way === "down" ? "descending" : "ascending") : "none");
    cell.querySelector(".way").textContent = own ? (way === "down" ? " ↓" : " ↑") : "";
  }
  byId("sort").value = key;
}

/** @param {string} key */
function sortBy(key) {
  const [old, way] = choice.sort.split(":");
  const first = ORDERS[key].down ? "down" : "up";
  choose("sort", `${key}:${old === key ? (way === "up" ? "down" : "up") : first}`);
}

/** @param {Run[]} shown */
function drawRows(shown) {
  const table = byId("table");
  const bodies = shown.map((run) => {
    const text = JSON.stringify(run);
    const old = drawn.get(run.name);
    if (old?.text === text) {
      old.body.querySelector("input").checked = ticked.has(run.name);
      return old.body;
    }
    const body = rowsOf(run, ticked.has(run.name), tick);
    const held = old?.body.contains(document.activeElement) ? document.activeElement.tagName : "";
    old?.body.replaceWith(body);
    if (held) body.querySelector(held)?.focus();
    drawn.set(run.name, { text, body });
    return body;
  });
  const wanted = new Set(bodies);
  for (const body of [...table.tBodies]) if (!wanted.has(body)) body.remove();
  bodies.forEach((body, place) => {
    if (table.tBodies[place] !== body) table.insertBefore(body, table.tBodies[place] ?? null);
  });
}

function drawTicked() {
  const there = new Set(runs.filter((run) => run.state !== "unreadable").map((run) => run.name));
  const names = [...ticked].filter((name) => there.has(name));
  const bar = byId("ticked");
  bar.hidden = !names.length;
  document.body.classList.toggle("has-ticked", names.length > 0);
  if (!names.length) return;
  const clear = el("button", { type: "button", class: "quiet", onclick: untick }, "Clear");
  const what =
    names.length < 2
      ? el("span", { class: "muted" }, "tick another run to compare them")
      : names.length > MOST
        ? el("span", { class: "muted" }, `at most ${MOST} fit on one page`)
        : el("a", { class: "go", href: comparisonOf(names) }, `Compare ${names.length} runs`);
  bar.replaceChildren(el("span", { class: "names" }, names.join(", ")), what, clear);
}

function untick() {
  ticked.clear();
  for (const { body } of drawn.values()) body.querySelector("input").checked = false;
  writeChoice();
  drawTicked();
}

/** Ask the service for the runs; the browser itself asks whether they have changed. */
async function ask() {
  const problem = byId("problem");
  try {
    const answer = await fetch("api/shelf", { cache: "no-cache" });
    if (answer.status === 401 || answer.status === 403) return location.reload();
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    ({ runs, output } = await answer.json());
    problem.hidden = true;
    byId("updated").textContent = `as of ${new Date().toLocaleTimeString()}`;
    draw();
  } catch (reason) {
    problem.textContent = `The service does not answer (${reason.message}). What is shown may be old; the page goes on asking.`;
    problem.hidden = false;
  }
  return undefined;
}

function listen() {
  const search = byId("search");
  search.value = choice.search;
  search.addEventListener("input", () => choose("search", search.value));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const field of ["model", "data"]) byId(field).addEventListener("change", () => choose(field, byId(field).value));
  byId("sort").addEventListener("change", () => sortBy(byId("sort").value));
  addEventListener("hashchange", () => {
    Object.assign(choice, DEFAULTS);
    readChoice();
    search.value = choice.search;
    draw();
  });
  find(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("runs").focus();
  });
  document.addEventListener("visibilitychange", () => document.hidden || ask());
}

async function main() {
  readChoice();
  listen();
  await ask();
  document.documentElement.dataset.ready = "yes";
  setInterval(() => document.hidden || ask(), EVERY);
}

main();
