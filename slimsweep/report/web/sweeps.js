// The page that starts sweeps: a form or a text is checked by the service, planned, and started as a job of the cluster.

import { ask, Refused } from "./ask_service.js";
import { byId, el } from "./dom.js";
import { addressOf } from "./shelf_order.js";
import { textOf } from "./sweep_text.js";

const EVERY = 5000; // milliseconds between two questions about the jobs
const PAUSE = 400; // milliseconds without a key before the configuration is checked
const KEPT = "slimsweep-token"; // in this tab alone, as what is asked for
const ASKED = "slimsweep-sweep";

/** @typedef {{ name: string, text: string, values: Record<string, string> }} Preset */

/** @type {{ presets: Preset[], fields: { name: string, help: string, list: boolean, choices: string[] }[] }} */
const data = JSON.parse(byId("data").textContent);

let asText = false;
let planned = ""; // the sweep whose plan is shown, as JSON
let written = ""; // the text that the page itself wrote for the form
let checks = 0;
let waiting = 0;

const token = () => sessionStorage.getItem(KEPT) ?? "";

/** The run whose log is shown: in the address, so that a link leads to it and a reload keeps it. */
const shownRun = () => new URLSearchParams(location.hash.slice(1)).get("run") ?? "";

/** @param {string} run */
const showRun = (run) => history.replaceState(null, "", `#${new URLSearchParams({ run })}`);

/** @param {unknown} problem */
function say(problem) {
  const node = byId("problem");
  node.hidden = !problem;
  node.textContent = problem instanceof Error ? problem.message : String(problem ?? "");
}

/** What the form's fields say. */
function said() {
  /** @type {Record<string, string>} */
  const fields = {};
  for (const { name } of data.fields) {
    const value = byId(`field-${name}`).value.trim();
    if (value) fields[name] = value;
  }
  return fields;
}

/** What the page asks for, as the service takes it. */
function asked() {
  const text = asText ? byId("text").value : "";
  const flags = { quick: byId("quick").checked, smoke: byId("smoke").checked };
  return { preset: byId("preset").value, text, fields: asText ? {} : said(), ...flags };
}

const keep = () =>
  sessionStorage.setItem(ASKED, JSON.stringify({ ...asked(), fields: said(), text: byId("text").value, written, asText }));

/** What was asked for in this tab before the page was loaded again. */
function restore() {
  const kept = JSON.parse(sessionStorage.getItem(ASKED) ?? "null");
  if (!kept) return;
  if (data.presets.some(({ name }) => name === kept.preset)) byId("preset").value = kept.preset;
  for (const [name, value] of Object.entries(kept.fields)) if (byId(`field-${name}`)) byId(`field-${name}`).value = value;
  for (const flag of ["quick", "smoke"]) byId(flag).checked = kept[flag];
  byId("text").value = kept.text;
  ({ written, asText } = kept);
}

/** What a field is where nothing is said of it: as in the preset. */
function drawPreset() {
  const preset = data.presets.find(({ name }) => name === byId("preset").value);
  if (!preset) return;
  byId("preset-text").textContent = preset.text;
  for (const { name, choices } of data.fields) {
    const value = preset.values[name] || "none";
    if (choices.length) byId(`field-${name}`).options[0].textContent = `${value} (as in the preset)`;
    else byId(`field-${name}`).placeholder = value;
  }
}

/** @param {{ sentence: string, field: string, line: number | null }[]} problems */
function drawProblems(problems) {
  const atFields = asText ? [] : [...data.fields.map(({ name }) => name), "preset"];
  for (const name of atFields) {
    const own = problems.filter((problem) => problem.field === name);
    const input = byId(name === "preset" ? "preset" : `field-${name}`);
    const node = byId(`problem-of-${name}`);
    input.setAttribute("aria-invalid", own.length ? "true" : "false");
    node.hidden = !own.length;
    node.textContent = own.map((problem) => problem.sentence).join(" ");
  }
  const others = problems.filter((problem) => !atFields.includes(problem.field));
  byId("problems").replaceChildren(...others.map(listed));
}

/** @param {{ sentence: string, line: number | null }} problem */
function listed({ sentence, line }) {
  if (!line) return el("li", {}, sentence);
  const go = el("button", { type: "button", class: "link", onclick: () => select(line) }, `Line ${line}`);
  return el("li", {}, go, `: ${sentence}`);
}

/** @param {number} line */
function select(line) {
  const area = byId("text");
  const lines = area.value.split("\n");
  const begins = lines.slice(0, line - 1).reduce((/** @type {number} */ sum, /** @type {string} */ l) => sum + l.length + 1, 0);
  area.focus();
  area.setSelectionRange(begins, begins + (lines[line - 1] ?? "").length);
}

/** Called on each change: the plan that is shown is of another sweep now. */
function changed() {
  byId("start").disabled = JSON.stringify(asked()) !== planned;
  keep();
  clearTimeout(waiting);
  if (token()) waiting = setTimeout(check, PAUSE);
}

async function check() {
  const mine = ++checks;
  try {
    const { problems } = await ask("api/sweeps/check", { method: "POST", token: token(), body: asked() });
    if (mine === checks) drawProblems(problems);
  } catch (problem) {
    refused(problem);
  }
}

/** Says why something did not happen: at the token where that is the reason, else at the fields, else above all.
 * @param {unknown} problem */
function refused(problem) {
  if (problem instanceof Refused && problem.isAboutToken) askForToken(problem.message);
  else if (problem instanceof Refused && problem.problems.length) drawProblems(problem.problems);
  else say(problem);
}

/** @param {string} [why] why the one that was given is not taken */
function askForToken(why = "") {
  sessionStorage.removeItem(KEPT);
  drawToken();
  byId("problem-of-token").hidden = !why;
  byId("problem-of-token").textContent = why;
  byId("token").setAttribute("aria-invalid", String(Boolean(why)));
  byId("token").focus();
}

function drawToken() {
  byId("token-form").hidden = Boolean(token());
  byId("signed").hidden = !token();
}

/**
 * Does something while the buttons are off.
 * @param {string} what
 * @param {() => Promise<void>} act
 */
async function working(what, act) {
  if (!token()) return askForToken("Planning and starting need the token.");
  for (const id of ["plan", "start"]) byId(id).disabled = true;
  byId("working").textContent = what;
  try {
    await act();
    say("");
  } catch (problem) {
    refused(problem);
  }
  byId("working").textContent = "";
  byId("plan").disabled = false;
  byId("start").disabled = JSON.stringify(asked()) !== planned;
  return undefined;
}

function plan() {
  const body = asked();
  return working("Planning: models are timed, which takes up to a minute.", async () => {
    const found = await ask("api/sweeps/plan", { method: "POST", token: token(), body });
    drawProblems([]);
    planned = JSON.stringify(body);
    byId("planned").hidden = false;
    byId("plan-text").textContent = found.text;
    byId("command").textContent = found.command;
    byId("planned").scrollIntoView({ block: "nearest" });
  });
}

function start() {
  return working("Starting.", async () => {
    const job = await ask("api/sweeps", { method: "POST", token: token(), body: asked() });
    planned = "";
    showRun(job.run);
    await drawJobs();
    byId("jobs").focus(); // it is below: what became of the start is seen there
  });
}

/**
 * @param {any} job
 * @param {string[]} runs names of those that have a report
 */
function jobRow(job, runs) {
  const began = job.started ? new Date(1000 * job.started).toLocaleString() : "";
  /** @param {string} path */
  const act = (path) => async () => {
    try {
      await ask(path, { method: "POST", token: token(), body: path.includes("go-on") ? {} : undefined });
      say("");
      await drawJobs();
    } catch (problem) {
      refused(problem);
    }
  };
  const run = encodeURIComponent(job.run);
  const showLog = () => {
    showRun(job.run);
    return drawJobs();
  };
  return el(
    "div",
    { class: "job" },
    el("b", {}, runs.includes(job.run) ? el("a", { href: addressOf(job.run) }, job.run) : job.run),
    el("span", { class: job.state }, job.state),
    el("span", { class: "said" }, [began, job.alive ? "" : job.message].filter(Boolean).join(" \u2013 ")),
    el("button", { type: "button", onclick: showLog }, "Log"),
    job.alive
      ? el("button", { type: "button", onclick: act(`api/sweeps/stop?run=${run}`) }, "Stop")
      : el("button", { type: "button", onclick: act(`api/sweeps/go-on?run=${run}`) }, "Go on"),
  );
}

async function drawJobs() {
  if (!token()) return;
  try {
    const { jobs, runs } = await ask("api/sweeps", { token: token() });
    const latest = jobs.filter(
      (/** @type {any} */ job, /** @type {number} */ place) =>
        jobs.findIndex((/** @type {any} */ j) => j.run === job.run) === place,
    );
    const none = el("p", { class: "muted" }, "No sweep was started from here since the cluster began.");
    drawList(latest.length ? latest.map((/** @type {any} */ job) => jobRow(job, runs)) : [none]);
    const chosen = byId("run").options.length ? byId("run").value : shownRun();
    byId("run").replaceChildren(...runs.map((/** @type {string} */ name) => el("option", { value: name }, name)));
    if (runs.includes(chosen)) byId("run").value = chosen;
    byId("going-on").hidden = !runs.length;
    await drawLog(latest);
  } catch (problem) {
    refused(problem);
  }
}

/** Puts new rows in place of the old ones; the button that has the focus keeps it.
 * @param {any[]} rows */
function drawList(rows) {
  const list = byId("job-list");
  const buttons = () => [...list.querySelectorAll("button")];
  const place = buttons().indexOf(document.activeElement);
  list.replaceChildren(...rows);
  if (place >= 0) buttons()[place]?.focus();
}

/** @param {any[]} jobs */
async function drawLog(jobs) {
  const run = shownRun();
  const known = jobs.some((job) => job.run === run);
  byId("log").hidden = !known;
  if (!known) return;
  const found = await ask(`api/sweeps/log?run=${encodeURIComponent(run)}`, { token: token() });
  const node = byId("log-text");
  const atEnd = node.scrollTop + node.clientHeight >= node.scrollHeight - 8;
  byId("log-title").textContent = `${found.run}: ${found.state}`;
  node.textContent = found.log || "Nothing was printed yet.";
  if (atEnd) node.scrollTop = node.scrollHeight;
}

/** @param {boolean} text */
function show(text) {
  asText = text;
  const own = byId("text").value;
  if (text && (!own.trim() || own === written)) {
    const lists = new Set(data.fields.filter(({ list }) => list).map(({ name }) => name));
    byId("text").value = written = textOf(byId("preset").value, said(), lists);
  }
  byId("by-form").setAttribute("aria-pressed", String(!text));
  byId("by-text").setAttribute("aria-pressed", String(text));
  byId("form-part").hidden = text;
  byId("text-part").hidden = !text;
  changed();
}

function begin() {
  byId("preset").replaceChildren(...data.presets.map(({ name }) => el("option", { value: name }, name)));
  byId("preset").value = "digits";
  byId("fields").replaceChildren(
    ...data.fields.map(({ name, help, choices }) => {
      const how = { id: `field-${name}`, "aria-describedby": `help-of-${name} problem-of-${name}` };
      const options = ["", ...choices].map((value) => el("option", { value }, value));
      return el(
        "div",
        { class: "field" },
        el("label", { for: `field-${name}` }, name),
        choices.length ? el("select", how, ...options) : el("input", { ...how, type: "text", spellcheck: "false" }),
        el("small", { id: `help-of-${name}`, title: help }, help),
        el("p", { class: "wrong", id: `problem-of-${name}`, hidden: true }),
      );
    }),
  );
  byId("preset").addEventListener("change", drawPreset);
  byId("sweep").addEventListener("input", changed);
  byId("sweep").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    return plan();
  });
  byId("start").addEventListener("click", start);
  byId("by-form").addEventListener("click", () => show(false));
  byId("by-text").addEventListener("click", () => show(true));
  byId("forget").addEventListener("click", () => askForToken());
  byId("token-form").addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    const given = byId("token").value.trim();
    byId("token").value = "";
    try {
      await ask("api/sweeps/check", { method: "POST", token: given, body: {} });
    } catch (problem) {
      return refused(problem);
    }
    sessionStorage.setItem(KEPT, given);
    byId("problem-of-token").hidden = true;
    say("");
    drawToken();
    changed();
    return drawJobs();
  });
  addEventListener("hashchange", drawJobs);
  byId("going-on").addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    const budgets = byId("more")
      .value.split(",")
      .map((/** @type {string} */ one) => one.trim())
      .filter(Boolean);
    const run = byId("run").value;
    try {
      await ask(`api/sweeps/go-on?run=${encodeURIComponent(run)}`, { method: "POST", token: token(), body: { budgets } });
      byId("more").value = "";
      showRun(run);
      say("");
      await drawJobs();
    } catch (problem) {
      const several = problem instanceof Refused ? problem.problems : [];
      say(several.length ? several.map(({ sentence }) => sentence).join(" ") : problem);
    }
  });
  restore();
  drawPreset();
  drawToken();
  show(asText);
  drawJobs();
  setInterval(() => document.visibilityState === "visible" && drawJobs(), EVERY);
}

begin();
