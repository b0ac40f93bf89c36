// Where the gates ended, and which leave at which budget.

import { plain } from "./format.js";
import { drawPanels } from "./panels.js";

/**
 * @param {string} id of the figure
 * @param {any} leaving what Python sends of a run (slimsweep/report/about.py)
 * @param {{ name: (family: string) => string, colour: (family: string) => string, colours: any, narrow: boolean, unit: string }} how
 */
export function drawLeaving(id, { budgets, families }, { name, colour, colours, narrow, unit }) {
  const percent = budgets.map((budget) => 100 * budget);
  const said = (/** @type {number} */ i) => `${Number(percent[i].toPrecision(3))} %`;
  const entries = Object.entries(families);
  const axes = (/** @type {number} */ n) => (n ? { xaxis: `x${n + 1}`, yaxis: `y${n + 1}` } : {});
  const traces = entries.flatMap(([family, { edges, counts }], n) =>
    counts
      .map((bins, i) => ({
        type: "bar",
        x: bins.map((_, b) => (edges[b] + edges[b + 1]) / 2),
        y: bins,
        width: edges[1] - edges[0],
        // What leaves first is faintest.
        marker: { color: colour(family), opacity: 0.15 + (0.85 * i) / (counts.length - 1), line: { width: 0 } },
        name: plain(i < budgets.length ? `leaves by ${said(i)}` : `kept at ${said(budgets.length - 1)}`),
        hovertemplate: `%{y} ${plain(name(family))} from ${"%{customdata[0]} to %{customdata[1]}"}: ${
          i < budgets.length ? `leave on the way to ${said(i)}` : `still kept at ${said(budgets.length - 1)}`
        }<extra></extra>`,
        customdata: bins.map((_, b) => [edges[b].toFixed(3), edges[b + 1].toFixed(3)]),
        ...axes(n),
      }))
      .reverse(),
  );
  for (const [family, { kept }] of entries)
    traces.push({
      type: "scatter",
      mode: "lines+markers",
      x: percent,
      y: kept.map((share) => 100 * share),
      line: { color: colour(family), width: 2 },
      marker: { size: 5 },
      name: plain(name(family)),
      hovertemplate: `${plain(name(family))} at %{x:.3g} %: %{y:.1f} % kept<extra></extra>`,
      ...axes(entries.length),
    });
  const titles = [
    ...entries.map(([family, { by }]) => `${name(family)}, by ${by === "score" ? "score" : "gate"}`),
    "kept, % of the gates",
  ];
  const xtitles = [...entries.map(([, { by }]) => (by === "score" ? "score" : "value of the gate")), `budget, % of ${unit}`];
  drawPanels(id, traces, titles, narrow, colours, xtitles, { fromZero: titles.map((_, i) => i), stacked: true });
}
