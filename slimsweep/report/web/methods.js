// Methods compared over all budgets.

import { actions } from "./actions.js";
import { compareMethods } from "./comparison.js";
import { byId, el, svg } from "./dom.js";
import { capital, count, DASH, difference, fixed, known, scaled, show, showSpread } from "./format.js";
import { columnMetric, measureOf } from "./metrics.js";
import { state } from "./state.js";
import { markerIcon, seriesStyle } from "./styles.js";
import { toldApart } from "./uncertainty.js";

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
  const item = (name, text) => el("li", {}, el("strong", {}, name), `: ${text}`);
  // Data sets of runs that are judged otherwise than the first are told apart in their own rows.
  const { word, points } = measureOf(page, rows[0].r);
  const equal = compared
    ? [
        item(
          `At equal ${cost.title}`,
          `by how ${points ? `many points of test ${word}` : `much test ${word}`} ${reference} is ahead (+) of the row's method, or behind (\u2212), at the same ${cost.title}: the mean over the range below the number, which both cover.`,
        ),
        item(
          `${capital(cost.title)} for the same ${word}`,
          `0.80× means that ${reference} reaches the same ${word} as the row's method with 80 % of its ${cost.title}, on average over the range below the number; ${DASH} where they reach no common ${word}.`,
        ),
      ]
    : [];
  const parts = [
    el("h2", { id: "methods-title" }, several ? "Runs and methods" : "Methods"),
    el(
      "ul",
      { class: "caption" },
      item(
        "Hypervolume",
        `average over all MACs limits of the best test ${word} available under that limit, up to the MACs of the data set's largest dense model (0 where no model is small enough). MACs that a budget allows and a model does not use count as a gain, so it compares methods only where all use up the same budgets.`,
      ),
      ...equal,
    ),
    el(
      "p",
      { class: "caption" },
      "Mean ± standard error over seeds; one seed has no ±. Hypervolumes are at the budgets that all of those seeds have.",
      compared ? ` The other two compare equal seeds with each other, and take each model at its own ${cost.title}.` : "",
    ),
  ];
  if (compared) parts.push(choice(page, rows, sets));
  const titles = [
    ...(several ? ["Run", "Model"] : []),
    "Method",
    "Hypervolume",
    "",
    ...(compared ? [`At equal ${cost.title}`, `${capital(cost.title)} for the same ${word}`] : []),
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
          here.length > 1 ? `; ${nameOf(page, first)} compared with each row` : "",
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
          el("td", {}, showSpread(measureOf(page, row.r), row.mean, row.se)),
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

// The choice of what is compared with the others.
function choice(page, rows, sets) {
  const choices = sets.filter(({ here }) => here.length > 1);
  const names = choices
    .flatMap(({ here }) => here)
    .sort((a, b) => rows.indexOf(a) - rows.indexOf(b))
    .map((row) => nameOf(page, row));
  const pick = el("select", { id: "against" }, ...names.map((name) => el("option", { value: name }, name)));
  const chosen = choices.map((one) => nameOf(page, one.reference));
  pick.value = chosen.includes(state.against) ? state.against : chosen[0];
  pick.addEventListener("change", () => {
    state.against = pick.value;
    actions.update();
    byId("against").focus();
  });
  return el("div", { class: "controls" }, el("label", {}, "Compare ", pick, " with each row"));
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
  const { seeds, difference: gap, ratio } = found;
  const measure = measureOf(page, reference.r);
  const spread = (/** @type {OverSeeds} */ one, digits = 2) => (known(one.se) ? ` ± ${fixed(one.se, digits)}` : "");
  const range = (/** @type {OverSeeds} */ one, /** @type {(value: number | null) => string} */ text) => {
    const some = one.seeds < seeds ? `, ${count(one.seeds, "seed")}` : "";
    return el("small", {}, `${rangeText(text(one.low), text(one.high))}${some}`);
  };
  return [
    known(gap.mean)
      ? el(
          "td",
          { class: known(gap.se) && !toldApart(gap.mean, gap.se) ? "within" : "" },
          `${difference({ ...measure, points: "" }, gap.mean)}${spread(gap, measure.decimals)}${measure.points}`,
          range(gap, (v) => show(cost, v)),
        )
      : el("td", {}, DASH),
    known(ratio.mean)
      ? el(
          "td",
          {},
          `${fixed(ratio.mean)}${spread(ratio)}×`,
          range(ratio, (v) => show({ ...measure, decimals: measure.decimals - 1 }, v)),
        )
      : el("td", {}, DASH),
  ];
}

/**
 * A range with its unit once, where both ends have the same: "0.668 to 5.56 MMACs".
 * @param {string} low
 * @param {string} high
 */
function rangeText(low, high) {
  const unit = low.slice(low.indexOf(" "));
  return `${high.endsWith(unit) ? low.slice(0, -unit.length) : low} to ${high}`;
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
