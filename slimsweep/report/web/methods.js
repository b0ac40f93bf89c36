// Methods compared over all budgets.

import { actions } from "./actions.js";
import { compareMethods } from "./comparison.js";
import { byId, el, svg } from "./dom.js";
import { capital, count, DASH, fixed, known, scaled, show, signed, withSpread } from "./format.js";
import { columnMetric } from "./metrics.js";
import { state } from "./state.js";
import { markerIcon, seriesStyle } from "./styles.js";

/** @import { OverSeeds } from "./comparison.js" */
/** @import { Metric, Page, Run, View } from "./types.js" */

/**
 * A method of a run with its hypervolume.
 * @typedef {Run["hypervolume"][number] & { run: Run, r: number }} Row
 */

/**
 * How good a method is over all budgets: by its hypervolume, and beside the method that the reader compares with.
 * @param {View} view
 */
export function drawMethods(view) {
  const { page } = view;
  const section = byId("methods");
  /** @type {Row[]} */
  const rows = page.runs.flatMap((run, r) => run.hypervolume.map((h) => ({ ...h, run, r })));
  section.hidden = !rows.length;
  if (!rows.length) return;
  const several = page.runs.length > 1;
  const sets = page.datasets
    .map((set) => {
      const here = rows.filter((row) => set.runs.includes(row.r)).sort((a, b) => b.mean - a.mean);
      return { set, here, reference: referenceOf(page, here) };
    })
    .filter(({ here }) => here.length);
  const compared = sets.some(({ here }) => here.length > 1);
  const cost = costOf(view);
  const names = new Set(sets.map(({ reference }) => reference.method));
  const reference = names.size === 1 ? [...names][0] : "the reference";
  const parts = [
    el("h2", { id: "methods-title" }, several ? "Runs and methods" : "Methods"),
    el(
      "p",
      { class: "caption" },
      "Hypervolume: average over all MACs limits of the best test accuracy available under that limit, up to the MACs of the data set's largest dense model (0 where no model is small enough). Mean ± standard error over seeds, at the budgets that all seeds of a method have; one seed has no ±. Methods compare where their budgets are the same. MACs that a budget allows and a model does not use count as a gain.",
    ),
  ];
  if (compared) parts.push(...explained(page, rows, sets, reference, cost));
  const titles = [
    ...(several ? ["Run", "Model"] : []),
    "Method",
    "Hypervolume",
    "",
    ...(compared
      ? [
          `${capital(reference)} ahead at equal ${cost.title}`,
          `${capital(cost.title)} that ${reference} needs for the same accuracy`,
        ]
      : []),
    "Budgets",
    "Seeds",
  ];
  const head = el(
    "tr",
    {},
    ...titles.map((t) => el("th", { scope: "col", class: ["Run", "Model", "Method"].includes(t) ? "text" : "" }, t)),
  );
  const table = el("table", { class: "plain methods" }, el("thead", {}, head));
  for (const { set, here, reference: first } of sets) {
    const low = Math.min(...here.map((row) => row.mean - (row.se ?? 0)));
    const high = Math.max(...here.map((row) => row.mean + (row.se ?? 0)));
    const reach = `up to ${scaled(set.reference_macs, "MACs")}`;
    const body = el(
      "tbody",
      {},
      el(
        "tr",
        {},
        el(
          "th",
          { scope: "rowgroup", colspan: titles.length, class: "text" },
          page.datasets.length > 1 ? `${set.name}, ${reach}` : capital(reach),
          here.length > 1 ? `; compared with ${nameOf(page, first)}` : "",
        ),
      ),
    );
    for (const row of here) {
      const { colour } = seriesStyle(page, row.r, row.method);
      body.append(
        el(
          "tr",
          {},
          ...(several ? [el("td", { class: "text" }, row.run.name), el("td", { class: "text" }, row.run.model)] : []),
          el("td", { class: "text" }, markerIcon(page, row.method, colour), " ", row.method),
          el("td", {}, `${withSpread(row.mean, row.se)} %`),
          el("td", { class: "gauge" }, here.length > 1 ? interval(row, low, high, colour) : null),
          ...(compared ? comparedCells(page, first, row, cost) : []),
          el("td", {}, String(row.budgets)),
          el("td", {}, String(row.seeds)),
        ),
      );
    }
    table.append(body);
  }
  section.replaceChildren(...parts, el("div", { class: "scroll" }, table));
}

/**
 * The cost that methods are compared in: the one on the horizontal axis, or MACs where more is better there.
 * @param {View} view
 * @returns {Metric}
 */
const costOf = ({ page, x }) => (x.more ? columnMetric(page.columns.find((c) => c.name === "macs")) : x);

/**
 * @param {Page} page
 * @param {Row} row
 */
const nameOf = (page, row) => (page.runs.length > 1 ? `${row.method} of ${row.run.name}` : row.method);

/**
 * The row that those of a data set are compared with: the reader's choice, else the first run's search, else the best.
 * @param {Page} page
 * @param {Row[]} here sorted, best first
 */
const referenceOf = (page, here) =>
  here.find((row) => nameOf(page, row) === state.against) ??
  here.filter((row) => row.method === "searched").sort((a, b) => a.r - b.r)[0] ??
  here[0];

// What the two measures say, with the choice of what to compare with.
function explained(page, rows, sets, reference, cost) {
  const pick = el(
    "select",
    { id: "against" },
    ...sets
      .flatMap(({ here }) => (here.length > 1 ? [...here].sort((a, b) => rows.indexOf(a) - rows.indexOf(b)) : []))
      .map((row) => nameOf(page, row))
      .map((name) => el("option", { value: name }, name)),
  );
  const chosen = sets.map((one) => nameOf(page, one.reference));
  pick.value = chosen.includes(state.against) ? state.against : chosen[0];
  pick.addEventListener("change", () => {
    state.against = pick.value;
    actions.update();
    byId("against").focus();
  });
  return [
    el(
      "p",
      { class: "caption" },
      `Ahead at equal ${cost.title}: the mean distance between two curves of test accuracy over ${cost.title}, where both methods have models; +1 means one point more accuracy with as many ${cost.title}. ${capital(cost.title)} for the same accuracy: 0.80× means that ${reference} reaches the accuracy of the row's method with 80 % of the ${cost.title}. Each model counts at its own ${cost.title}, so neither rewards what is not used. Below each number is the range that both methods cover; ${DASH} where there is none. Pairs of equal seeds are compared.`,
    ),
    el("div", { class: "controls" }, el("label", {}, "Compare with ", pick)),
  ];
}

/**
 * @param {Page} page
 * @param {Row} reference
 * @param {Row} row
 * @param {Metric} cost
 */
function comparedCells(page, reference, row, cost) {
  if (row === reference) return [el("td"), el("td")];
  const found = compareMethods(page, { run: reference.r, method: reference.method }, { run: row.r, method: row.method }, cost);
  if (!found) return [el("td", {}, DASH), el("td", {}, DASH)];
  const { difference, ratio } = found;
  const spread = (/** @type {OverSeeds} */ one) => (known(one.se) ? ` ± ${fixed(one.se)}` : "");
  const range = (/** @type {OverSeeds} */ one, /** @type {(value: number | null) => string} */ text) => {
    const seeds = one.seeds < Math.max(difference.seeds, ratio.seeds) ? `, ${count(one.seeds, "seed")}` : "";
    return el("small", {}, `${text(one.low)} to ${text(one.high)}${seeds}`);
  };
  return [
    known(difference.mean)
      ? el(
          "td",
          {},
          `${signed(difference.mean)}${spread(difference)} points`,
          range(difference, (v) => show(cost, v)),
        )
      : el("td", {}, DASH),
    known(ratio.mean)
      ? el(
          "td",
          {},
          `${fixed(ratio.mean)}${spread(ratio)}×`,
          range(ratio, (v) => `${fixed(v, 1)} %`),
        )
      : el("td", {}, DASH),
  ];
}

// A mean and its standard error on a scale that all rows share.
function interval(row, low, high, colour) {
  const at = (value) => 4 + (192 * (value - low)) / (high - low || 1);
  const picture = svg(
    "svg",
    { viewBox: "0 0 200 14", width: 200, height: 14, "aria-hidden": "true" },
    svg("path", { d: "M0 7h200", class: "axis" }),
  );
  if (known(row.se))
    picture.append(
      svg("path", { d: `M${at(row.mean - row.se)} 7H${at(row.mean + row.se)}`, stroke: colour, "stroke-width": 3 }),
    );
  picture.append(svg("circle", { cx: at(row.mean), cy: 7, r: 4, fill: colour }));
  return picture;
}
