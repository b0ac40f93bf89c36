// The page that starts sweeps: a form or a text is checked by the service, planned, and started as a job of the cluster.

import { ask, Refused } from "./ask_service.js";
import { byId, el } from "./dom.js";

const EVERY = 5000; // milliseconds between two questions about the jobs
const PAUSE = 400; // milliseconds without a key before the configuration is checked
const KEPT = "slimsweep-token"; // in this tab alone

/** @type {{ presets: string[], fields: { name: string, help: string, placeholder: string }[] }} */
const data = JSON.parse(byId("data").textContent);

let asText = false;
let planned = ""; // the sweep whose plan is shown, as JSON
let shownLog = ""; // the run whose log is shown
let checks = 0;
let waiting = 0;

const token = () => sessionStorage.getItem(KEPT) ?? "";

/** @param {unknown} problem */
function say(problem) {
  const node = byId("problem");
  node.hidden = !problem;
  node.textContent = problem instanceof Error ? problem.message : String(problem ?? "");
}

/** What the page asks for, as the service takes it. */
function asked() {
  /** @type {Record<string, string>} */
  const fields = {};
  for (const { name } of asText ? [] : data.fields) {
    const value = byId(`field-${name}`).value.trim();
    if (value) fields[name] = value;
  }
  const text = asText ? byId("text").value : "";
  return { preset: byId("preset").value, text, fields, quick: byId("quick").checked, smoke: byId("smoke").checked };
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
  clearTimeout(waiting);
  if (token()) waiting = setTimeout(check, PAUSE);
}

async function check() {
  const mine = ++checks;
  try {
    const { problems } = await ask("api/sweeps/check", { method: "POST", token: token(), body: asked() });
    if (mine === checks) drawProblems(problems);
  } catch (problem) {
    say(problem);
  }
}

/**
 * Does something while the buttons are off.
 * @param {string} what
 * @param {() => Promise<void>} act
 */
async function working(what, act) {
  for (const id of ["plan", "start"]) byId(id).disabled = true;
  byId("working").textContent = what;
  try {
    await act();
    say("");
  } catch (problem) {
    if (problem instanceof Refused && problem.problems.length) drawProblems(problem.problems);
    else say(problem);
  }
  byId("working").textContent = "";
  byId("plan").disabled = false;
  byId("start").disabled = JSON.stringify(asked()) !== planned;
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
  });
}

function start() {
  return working("Starting.", async () => {
    const job = await ask("api/sweeps", { method: "POST", token: token(), body: asked() });
    planned = "";
    shownLog = job.run;
    await drawJobs();
  });
}

/**
 * @param {any} job
 */
function jobRow(job) {
  const began = job.started ? new Date(1000 * job.started).toLocaleString() : "";
  /** @param {string} path */
  const act = (path) => async () => {
    try {
      await ask(path, { method: "POST", token: token(), body: path.includes("go-on") ? {} : undefined });
      await drawJobs();
    } catch (problem) {
      say(problem);
    }
  };
  const run = encodeURIComponent(job.run);
  const showLog = () => {
    shownLog = job.run;
    return drawJobs();
  };
  return el(
    "div",
    { class: "job" },
    el("b", {}, job.run),
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
    byId("job-list").replaceChildren(...(latest.length ? latest.map(jobRow) : [none]));
    const chosen = byId("run").value;
    byId("run").replaceChildren(...runs.map((/** @type {string} */ name) => el("option", { value: name }, name)));
    if (runs.includes(chosen)) byId("run").value = chosen;
    byId("going-on").hidden = !runs.length;
    await drawLog();
  } catch (problem) {
    say(problem);
  }
}

async function drawLog() {
  byId("log").hidden = !shownLog;
  if (!shownLog) return;
  const found = await ask(`api/sweeps/log?run=${encodeURIComponent(shownLog)}`, { token: token() });
  const node = byId("log-text");
  const atEnd = node.scrollTop + node.clientHeight >= node.scrollHeight - 8;
  byId("log-title").textContent = `${found.run}: ${found.state}`;
  node.textContent = found.log || "Nothing was printed yet.";
  if (atEnd) node.scrollTop = node.scrollHeight;
}

/** @param {boolean} text */
function show(text) {
  asText = text;
  byId("by-form").setAttribute("aria-pressed", String(!text));
  byId("by-text").setAttribute("aria-pressed", String(text));
  byId("form-part").hidden = text;
  byId("text-part").hidden = !text;
  changed();
}

function begin() {
  byId("preset").replaceChildren(...data.presets.map((name) => el("option", { value: name }, name)));
  byId("preset").value = "digits";
  byId("fields").replaceChildren(
    ...data.fields.map(({ name, help, placeholder }) =>
      el(
        "div",
        { class: "field" },
        el("label", { for: `field-${name}` }, name),
        el("input", {
          id: `field-${name}`,
          type: "text",
          spellcheck: "false",
          placeholder,
          "aria-describedby": `help-of-${name} problem-of-${name}`,
        }),
        el("small", { id: `help-of-${name}`, title: help }, help),
        el("p", { class: "wrong", id: `problem-of-${name}`, hidden: true }),
      ),
    ),
  );
  byId("sweep").addEventListener("input", changed);
  byId("sweep").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    return plan();
  });
  byId("start").addEventListener("click", start);
  byId("by-form").addEventListener("click", () => show(false));
  byId("by-text").addEventListener("click", () => show(true));
  byId("token-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    sessionStorage.setItem(KEPT, byId("token").value.trim());
    byId("token").value = "";
    byId("token-said").textContent = "The token is kept until this tab is closed.";
    say("");
    changed();
    return drawJobs();
  });
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
      shownLog = run;
      say("");
      await drawJobs();
    } catch (problem) {
      const several = problem instanceof Refused ? problem.problems : [];
      say(several.length ? several.map(({ sentence }) => sentence).join(" ") : problem);
    }
  });
  drawJobs();
  setInterval(() => document.visibilityState === "visible" && drawJobs(), EVERY);
}

begin();
