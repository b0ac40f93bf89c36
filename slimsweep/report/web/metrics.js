// @ts-check
// What can be an axis, groups of seeds at their place in the figure, and how a budget is said.

import { known, share } from "./format.js";
import { paretoFront } from "./front.js";

/** @import { Column, Dense, ErrorColumn, Group, Measure, Metric, Page, Placed, Point, View } from "./types.js" */

/**
 * What the models of a run are judged by.
 * @param {Page} page
 * @param {number} run
 * @returns {Measure}
 */
export const measureOf = (page, run) => page.measures[page.runs[run].measure];

/**
 * The value of a point, or of a group's means, in a column whose name is data.
 * @param {Point | Record<string, number | null>} numbers
 * @param {string} name
 * @returns {number | null | undefined}
 */
export const valueOf = (numbers, name) => /** @type {any} */ (numbers)[name];

/**
 * The metrics of each axis; those that no point has are left out.
 * @param {Page} page
 * @returns {{ x: Metric[], y: Metric[] }}
 */
export function metricsOf(page) {
  const all = [
    ...page.columns.map((column) => columnMetric(column)),
    ...page.errors.map((column) => errorMetric(column)),
    ...page.settings.flatMap((_, s) => timedMetrics(page, s)),
  ];
  const has = (/** @type {Metric} */ m) => page.points.some((p) => known(m.of(p)));
  return {
    x: all.filter((m) => m.axis === "x" && has(m)),
    y: all.filter((m) => m.axis === "y" && has(m)),
  };
}

/**
 * @param {Column} column
 * @returns {Metric}
 */
export const columnMetric = (column) => ({
  ...column,
  key: column.name,
  label: column.title,
  of: (point) => /** @type {any} */ (point)[column.name],
});

/**
 * @param {ErrorColumn} column
 * @returns {Metric}
 */
const errorMetric = (column) => ({
  ...columnMetric(column),
  error: column,
  of: (point) => {
    const value = valueOf(point, column.of);
    return known(value) ? column.best - value : null;
  },
});

/**
 * @param {Page} page
 * @param {number} setting
 * @returns {Metric[]}
 */
const timedMetrics = (page, setting) =>
  page.timings.map((column, c) => ({
    ...column,
    key: `${column.name}:${setting}`,
    label: `${column.title} (${page.settings[setting]})`,
    setting: page.settings[setting],
    of: (point) => point.bench[setting]?.[c] ?? null,
  }));

/** Latency that the sweep or another device measured, and that of slimsweep bench: names of timings, the first one first. */
export const LATENCIES = ["latency_ms", "latency_p50_ms"];

/**
 * The latency that a number of milliseconds is about: the one on the x axis, else the sweep's or a device's, else the benchmark's.
 * @param {Pick<View, "metrics" | "x">} view
 * @returns {Metric | undefined}
 */
export function latencyMetric({ metrics, x }) {
  if (LATENCIES.includes(x.name)) return x;
  const timed = metrics.x.filter((m) => LATENCIES.includes(m.name));
  // A throughput on the axis says which setting is meant.
  return timed.find((m) => m.setting === x.setting) ?? timed.find((m) => m.name === LATENCIES[0]) ?? timed[0];
}

/**
 * The key of the metric that shows a cost: of milliseconds a latency.
 * @param {Metric[]} metrics
 * @param {string} unit as budgets count
 */
export const costKey = (metrics, unit) =>
  unit === "ms" ? (metrics.find((m) => m.name === LATENCIES[0])?.key ?? "macs") : unit;

/**
 * The metric of an axis that the reader chose; else the default.
 * @param {Metric[]} metrics
 * @param {string} chosen a key, or ""
 * @param {string} otherwise
 */
export const metricOr = (metrics, chosen, otherwise) =>
  metrics.find((m) => m.key === chosen) ?? metrics.find((m) => m.key === otherwise) ?? metrics[0];

/**
 * The cost that belongs on the x axis: the one that all budgets shown count, else MACs.
 * @param {Point[]} points
 */
export function defaultCost(points) {
  const units = new Set(points.filter((p) => !isDense(p)).map((p) => p.unit));
  return units.size === 1 ? [...units][0] : "macs";
}

/** @type {Record<string, string>} */
const COST_NAMES = { macs: "MACs", ms: "latency" };

/**
 * What a share is of, in words: "MACs", "latency", or another cost by its name.
 * @param {string} unit
 */
export const costName = (unit) => COST_NAMES[unit] ?? unit;

/**
 * The share of its gates that each family keeps, where that was asked for: "attention 0.7, mlp 0.6".
 * @param {{ shares: string | null }} asked
 */
export const sharesOf = ({ shares }) => (shares ?? "").replace(/[{}"]/g, "").replaceAll(":", " ").replaceAll(",", ", ");

/**
 * A budget: "50 %" of the MACs, which goes without saying, "60 % of params", or "8 ms".
 * @param {{ budget: number | null, unit: string, budget_ms?: number | null }} asked
 */
export const budgetOf = ({ budget, unit, budget_ms }) =>
  known(budget_ms)
    ? `${Number(budget_ms.toPrecision(4))} ms`
    : share(budget, 1) + (unit !== "macs" && known(budget) ? ` of ${costName(unit)}` : "");

/**
 * What was asked of a point or group: its budget, where budgets in ms are of several settings the setting, and where shares of
 * gates were asked for, those.
 * @param {{ budget: number | null, unit: string, shares: string | null, budget_ms?: number | null, timed_in?: string }} asked
 */
export const askedOf = (asked) =>
  budgetOf(asked) + (asked.timed_in ? ` (${asked.timed_in})` : "") + (asked.shares ? ` (${sharesOf(asked)})` : "");

/**
 * The groups that have both numbers, each at its place; their points must all be shown or all hidden.
 * @param {Page} page
 * @param {Set<Point>} shown
 * @param {Metric} x
 * @param {Metric} y
 * @returns {Placed[]}
 */
export const placedGroups = (page, shown, x, y) =>
  page.groups
    .filter((g) => shown.has(g.members[0]) && known(g.mean[x.key]) && known(g.mean[y.key]))
    .map((g) => ({
      ...g,
      x: /** @type {number} */ (g.mean[x.key]),
      y: /** @type {number} */ (g.mean[y.key]),
      yse: g.se[y.key],
    }));

/**
 * The single points of groups that have both numbers: one that was not timed has no place where its latency is an axis.
 * @param {Pick<Placed, "members">[]} groups
 * @param {Metric} x
 * @param {Metric} y
 * @returns {Point[]}
 */
export const placedMembers = (groups, x, y) => groups.flatMap((g) => g.members).filter((p) => known(x.of(p)) && known(y.of(p)));

/**
 * What choices are made by: validation, so that the test split stays a test; test only where nothing else is known.
 * @param {Pick<Measure, "val" | "test">} measure
 * @param {Point | Record<string, number | null>} numbers of a point, or a group's means
 */
export function judged({ val, test }, numbers) {
  const [own, other] = [valueOf(numbers, val), valueOf(numbers, test)];
  return known(own) ? own : known(other) ? other : -Infinity;
}

/**
 * The measure on test of a run's first point shown, which suits the y axis.
 * @param {Page} page
 * @param {Point[]} shown
 */
export const defaultQuality = (page, shown) => measureOf(page, shown[0]?.run ?? 0).test;

/**
 * The measure that an axis shows on test; null for any other axis.
 * @param {Page} page
 * @param {Metric} y
 */
export const testMeasure = (page, y) => Object.values(page.measures).find((m) => m.test === y.key) ?? null;

/**
 * Whether a group's or point's model was trained after its cut. One that was not is on no front with those that were.
 * @param {Page} page
 * @param {{ method: string }} item
 */
export const isTrained = (page, { method }) => !page.untrained.includes(method);

/**
 * The items that were trained after their cut; all of them where none was.
 * @template {{ method: string }} T
 * @param {Page} page
 * @param {T[]} items
 * @returns {T[]}
 */
export function trainedOf(page, items) {
  const trained = items.filter((item) => isTrained(page, item));
  return trained.length ? trained : items;
}

/**
 * Whether a group or point is the whole model, retrained or as it was.
 * @param {{ method: string }} item
 */
export const isDense = ({ method }) => method === "dense" || method.startsWith("dense, ");

/**
 * What a change is measured against.
 * @param {Page} page
 * @param {number} run
 * @returns {Dense}
 */
export function denseOf(page, run) {
  const { val, test, untouched: defined } = measureOf(page, run);
  const numbers = (/** @type {Group} */ of) => ({ test: of.mean[test], val: of.mean[val] });
  const group = page.groups.find((g) => g.run === run && g.method === "dense" && known(g.mean[test])) ?? null;
  if (group) return { ...numbers(group), what: "retrained dense", group };
  const { untouched } = page.runs[run];
  const before = page.groups.find((g) => g.run === run && isDense(g) && !isTrained(page, g)) ?? null;
  if (before) return { ...numbers(before), what: "untouched dense", group: before };
  return { test: untouched, val: defined, what: known(untouched) ? "untouched dense" : "dense", group: null };
}

/**
 * @param {View} view
 * @param {Point} point
 * @returns {Placed | null}
 */
export const groupOf = (view, point) => view.groups.find((g) => g.members.includes(point)) ?? null;

/**
 * The neighbour on the front of the point's own run, one step along it; null at the end.
 * @param {View} view
 * @param {Point} point
 * @param {number} step -1: cheaper, 1: more expensive
 * @returns {Placed | null}
 */
export function neighbourOf(view, point, step) {
  const group = groupOf(view, point);
  if (!group) return null;
  const own = view.groups.filter((g) => g.run === point.run && isTrained(view.page, g) === isTrained(view.page, point));
  const front = paretoFront(own, view.x.more, view.y.more, view.tolerance);
  const cost = (/** @type {Placed} */ g) => (view.x.more ? -g.x : g.x);
  if (step < 0) return front.filter((g) => cost(g) < cost(group)).pop() ?? null;
  return front.find((g) => cost(g) > cost(group)) ?? null;
}
