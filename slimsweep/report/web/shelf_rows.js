// The rows of the shelf: one run each.

import { el } from "./dom.js";
import { capital, DASH, scaled } from "./format.js";
import { addressOf, ago } from "./shelf_order.js";

/** @import { Model, Run } from "./shelf_order.js" */

// Heading, and the key of the order that a click on it gives.
export const COLUMNS = [
  { key: "name", title: "Run", class: "text" },
  { key: "state", title: "State", class: "text" },
  { key: "points", title: "Points done" },
  { key: "near", title: "Smallest within 1 point of dense" },
  { key: "smallest", title: "Smallest model" },
  { key: "changed", title: "Last result" },
];

/**
 * A run as a body of the table: its row, and where something failed a second one that says why.
 * @param {Run} run
 * @param {boolean} ticked
 * @param {(name: string, on: boolean) => void} tick
 */
export function rowsOf(run, ticked, tick) {
  const read = run.state !== "unreadable";
  const box = el("input", { type: "checkbox", "aria-label": `Tick ${run.name} to compare it`, disabled: !read });
  box.checked = ticked;
  box.addEventListener("change", () => tick(run.name, box.checked));
  const name = read ? el("a", { href: addressOf(run.name) }, run.name) : el("b", {}, run.name);
  const cells = [
    el("td", { class: "tick" }, box),
    el("th", { scope: "row", class: "run-name" }, name, read ? el("small", {}, `${run.model} on ${run.data}`) : null),
    el("td", { class: "text run-state" }, ...stateOf(run)),
    cell("Points done", pointsOf(run)),
    cell("Within 1 point of dense", modelCell(run.near)),
    cell("Smallest model", modelCell(run.smallest)),
    cell("Last result", whenOf(run)),
  ];
  const body = el("tbody", { class: run.state, "data-run": run.name }, el("tr", {}, ...cells));
  if (run.why) {
    const what = read ? (run.failed ? failedPoints(run.failed) : "The last error") : "This folder cannot be shown";
    const text = el("div", { class: "why", title: run.why }, el("b", {}, `${what}: `), run.why);
    body.append(el("tr", { class: "why-row" }, el("td"), el("td", { class: "text", colspan: COLUMNS.length }, text)));
  }
  return body;
}

/**
 * A cell with a label, which a narrow screen shows; there it is left out where nothing is known.
 * @param {string} label
 * @param {(Node | string)[]} parts
 */
const cell = (label, parts) => el("td", { "data-label": label, class: parts[0] === DASH ? "nothing" : "" }, ...parts);

/** @param {number} failed */
const failedPoints = (failed) => (failed === 1 ? "1 point failed" : `${failed} points failed, the first`);

/** @param {Run} run */
function stateOf(run) {
  const parts = [el("span", { class: `state ${run.state}` }, capital(run.state))];
  if (run.bar && run.state !== "finished") {
    const progress = el("div", { class: "progress", role: "img", "aria-label": run.stage ?? "" });
    for (const [name, length] of Object.entries(run.bar)) {
      const piece = el("span", { class: name });
      piece.style.flexGrow = String(length);
      progress.append(piece);
    }
    parts.push(progress);
  }
  const at = run.stage && run.stage !== "-" && !run.stage.startsWith("points") ? `${run.stage} epochs` : "";
  const said = [at, run.time_left ? `${run.time_left} left` : ""].filter(Boolean).join(", ");
  if (said) parts.push(el("small", {}, said));
  return parts;
}

/** @param {Run} run */
function pointsOf(run) {
  if (run.done === undefined) return [DASH];
  const parts = [run.planned ? `${run.done} of ${run.planned}` : run.done ? String(run.done) : DASH];
  const said = [];
  if (run.running) said.push(`${run.running} running`);
  if (run.failed) said.push(`${run.failed} failed`);
  return said.length ? [...parts, el("small", { class: run.failed ? "bad" : "" }, said.join(", "))] : parts;
}

/** @param {Model | null | undefined} model */
function modelCell(model) {
  if (!model) return [DASH];
  const share = model.share === null ? scaled(model.macs, "MACs") : `${percentOf(model.share)} % of MACs`;
  const by = model.method === "searched" ? "" : `, ${model.method}`;
  const gap = model.difference_text ? ` (${model.difference_text})` : "";
  return [el("span", { title: scaled(model.macs, "MACs") }, share), el("small", {}, `${model.quality_text}${gap}${by}`)];
}

/** @param {number} share */
const percentOf = (share) => (100 * share).toFixed(share < 0.1 ? 1 : 0);

/** @param {Run} run */
function whenOf(run) {
  if (!run.changed) return [DASH];
  const at = new Date(run.changed);
  return [el("time", { datetime: run.changed, title: at.toLocaleString() }, ago(run.changed, Date.now()))];
}
