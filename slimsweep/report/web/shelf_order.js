// @ts-check
// Which runs the shelf shows, and in which order: functions of data alone.

import { known } from "./format.js";

/**
 * One of a run's models, as means over its seeds.
 * @typedef {{ method: string, share: number | null, macs: number, quality: number, quality_text: string,
 *   difference: number | null, difference_text: string }} Model
 */

/**
 * What the shelf knows of a run; one that cannot be read has only a name, a state and the reason.
 * @typedef {{ name: string, state: string, why: string, stage?: string, changed?: string | null, model?: string, data?: string,
 *   done?: number, failed?: number, running?: number, planned?: number, bar?: Record<string, number>, measure?: string,
 *   near?: Model | null, smallest?: Model | null, next?: string, time_left?: string }} Run
 */

/** @typedef {{ search: string, state: string, model: string, data: string, sort: string }} Choice */

// States in the order in which people want to see them.
export const STATES = ["running", "failed", "stopped", "finished", "unreadable"];

/** @type {Record<string, { title: string, of: (run: Run) => string | number | null | undefined, down?: boolean }>} */
export const ORDERS = {
  name: { title: "name", of: (run) => run.name.toLowerCase() },
  state: { title: "state", of: (run) => STATES.indexOf(run.state) },
  points: { title: "points done", of: (run) => run.done, down: true },
  near: { title: "smallest within 1 point", of: (run) => run.near?.share },
  smallest: { title: "smallest model", of: (run) => run.smallest?.share },
  changed: { title: "last result", of: (run) => (run.changed ? Date.parse(run.changed) : null), down: true },
};

/**
 * The runs that are shown: all words of the search are in a run's name, model, data, state or error.
 * @param {Run[]} runs
 * @param {Choice} choice
 */
export function filtered(runs, { search, state, model, data }) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const text = [run.name, run.model, run.data, run.state, run.why].join(" ").toLowerCase();
    return (
      (!state || run.state === state) &&
      (!model || run.model === model) &&
      (!data || run.data === data) &&
      words.every((word) => text.includes(word))
    );
  });
}

/**
 * The runs in an order such as "name:up" or "changed:down"; those without a value come last either way.
 * @param {Run[]} runs
 * @param {string} sort
 */
export function ordered(runs, sort) {
  const [key, way] = sort.split(":");
  const { of } = ORDERS[key] ?? ORDERS.changed;
  const sign = way === "down" ? -1 : 1;
  const lacks = (/** @type {unknown} */ value) => !known(value) && typeof value !== "string";
  return [...runs].sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (lacks(x) || lacks(y)) return Number(lacks(x)) - Number(lacks(y)) || byName(a, b);
    return (x === y ? 0 : /** @type {any} */ (x) < /** @type {any} */ (y) ? -sign : sign) || byName(a, b);
  });
}

/** @param {Run} a @param {Run} b */
const byName = (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

/**
 * How many runs there are per state, in the order of STATES.
 * @param {Run[]} runs
 * @returns {[string, number][]}
 */
export function perState(runs) {
  return STATES.map(
    (state) => /** @type {[string, number]} */ ([state, runs.filter((run) => run.state === state).length]),
  ).filter(([, number]) => number);
}

/**
 * The values of a field that some run has, each once.
 * @param {Run[]} runs
 * @param {"model" | "data"} field
 */
export const valuesOf = (runs, field) =>
  [...new Set(runs.map((run) => run[field] ?? ""))].filter(Boolean).sort((a, b) => a.localeCompare(b));

/**
 * The address of a run's page, relative to the shelf.
 * @param {string} name "run", or "group/run"
 */
export const addressOf = (name) => `runs/${name.split("/").map(encodeURIComponent).join("/")}`;

/**
 * The address of the page that compares runs, relative to the shelf.
 * @param {string[]} names
 */
export const comparisonOf = (names) => `compare?${names.map((name) => `run=${encodeURIComponent(name)}`).join("&")}`;

/**
 * How long ago something was, in words: "12 s ago", "3 h ago"; a date where it is more than a day.
 * @param {string} at an ISO time
 * @param {number} now milliseconds
 */
export function ago(at, now) {
  const seconds = Math.max(0, (now - Date.parse(at)) / 1000);
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(at).toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}
