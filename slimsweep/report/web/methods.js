// Methods compared over all budgets.

import { byId, el, svg } from "./dom.js";
import { capital, known, scaled, withSpread } from "./format.js";
import { markerIcon, seriesStyle } from "./styles.js";

/** @import { View } from "./types.js" */

/**
 * How good a method is over all budgets, in one number with its spread.
 * @param {View} view
 */
export function drawMethods(view) {
  const { page } = view;
  const section = byId("methods");
  const rows = page.runs.flatMap((run, r) => run.hypervolume.map((h) => ({ ...h, run, r })));
  section.hidden = !rows.length;
  if (!rows.length) return;
  const several = page.runs.length > 1;
  const parts = [
    el("h2", { id: "methods-title" }, several ? "Runs and methods" : "Methods"),
    el(
      "p",
      { class: "caption" },
      "Hypervolume: the area under a method's stepped front, from 0 % up and from 0 MACs to those of the data set's largest dense model, divided by those MACs. It is the best test top-1 under a limit on MACs, averaged over all limits (0 where no model is small enough). Mean ± standard error over seeds, at the budgets that all seeds of a method have; methods compare where their budgets are the same.",
    ),
  ];
  const titles = [...(several ? ["Run", "Model"] : []), "Method", "Hypervolume", "", "Budgets", "Seeds"];
  const head = el(
    "tr",
    {},
    ...titles.map((t) => el("th", { scope: "col", class: ["Run", "Model", "Method"].includes(t) ? "text" : "" }, t)),
  );
  const table = el("table", { class: "plain methods" }, el("thead", {}, head));
  for (const set of page.datasets) {
    const here = rows.filter((row) => set.runs.includes(row.r)).sort((a, b) => b.mean - a.mean);
    if (!here.length) continue;
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
          el("td", {}, String(row.budgets)),
          el("td", {}, String(row.seeds)),
        ),
      );
    }
    table.append(body);
  }
  section.replaceChildren(...parts, el("div", { class: "scroll" }, table));
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
