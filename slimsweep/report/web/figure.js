// The front figure: drawing it, its caption, and downloads of figures.

import { actions } from "./actions.js";
import { axisScale } from "./axes.js";
import { byId, el } from "./dom.js";
import { describeFigure } from "./download.js";
import { count, known } from "./format.js";
import { int8Sentence } from "./int8.js";
import { frontLayout } from "./layout.js";
import { limitsOn } from "./limits.js";
import { askedOf, isTrained, testMeasure, trainedOf } from "./metrics.js";
import { markerSizes } from "./sizes.js";
import { colourBy, seriesStyle, theme } from "./styles.js";
import { answerTrace, frontTraces, int8Trace, ring } from "./traces.js";
import { plotly } from "./plotly.js";
import { alikeSentence, errorSentence } from "./uncertainty.js";

/** @import { View } from "./types.js" */

/** @param {View} view */
export function drawFront(view) {
  const node = byId("front-figure");
  if (!plotly()) return; // not unpacked yet: drawn when it is
  if (!view.groups.length) {
    plotly().purge(node);
    node.replaceChildren(
      el(
        "p",
        { class: "empty" },
        view.page.points.length
          ? "Nothing to show: every series with these numbers is switched off."
          : "No point is done yet. Each one appears here when it is.",
      ),
    );
    return;
  }
  if (!node.querySelector(".plot-container")) node.replaceChildren();
  const colours = theme();
  const sx = axisScale(
    view.x,
    view.groups.map((g) => g.x),
  );
  const sy = axisScale(
    view.y,
    view.groups.map((g) => g.y),
  );
  const layout = frontLayout(view, colours, sx, sy);
  const sizes = markerSizes(
    view,
    { ...sx, range: layout.xaxis.range, log: view.logx, length: node.clientWidth - layout.margin.l - layout.margin.r },
    { ...sy, range: layout.yaxis.range, log: view.logy, length: layout.height - layout.margin.t - layout.margin.b },
  );
  const traces = [...frontTraces(view, colours, sx, sy, sizes), answerTrace(view, colours, sx, sy)];
  if (view.page.int8.columns.length) traces.push(int8Trace(view, sx, sy));
  view.scales = [sx, sy];
  view.shapes = layout.shapes;
  layout.shapes = [...view.shapes, ...ring(view, colours, sx, sy)];
  describeFigure("front-figure", () => ({ title: `${view.y.label} against ${view.x.label}`, legend: frontLegend(view) }));
  const first = !node.querySelector(".plot-container");
  plotly().react(node, traces, layout, {
    displayModeBar: false,
    responsive: true,
    doubleClick: "reset",
    scrollZoom: false,
  });
  if (first) {
    node.on("plotly_click", (event) => {
      const hit = event.points.find((p) => p.customdata !== undefined);
      if (hit) actions.choose(view.page.points[hit.customdata]);
    });
  }
}

/**
 * Only the ring moves when another point is opened.
 * @param {View} view
 */
export function moveRing(view) {
  if (view.shapes)
    plotly().relayout(byId("front-figure"), { shapes: [...view.shapes, ...ring(view, theme(), ...view.scales)] });
}

/**
 * How many of the models shown have no time on the x axis.
 * @param {View} view
 */
function untimedIn({ page, shown, x }) {
  const there = new Set(shown);
  return page.groups.filter((g) => there.has(g.members[0]) && !known(g.mean[x.key])).length;
}

/** @param {View} view */
export function frontCaption(view) {
  const { page } = view;
  const said = [];
  if (view.front.length) {
    const beside = trainedOf(page, view.groups).every((g) => isTrained(page, g))
      ? view.groups.filter((g) => !isTrained(page, g)).length
      : 0;
    const dominated = view.groups.length - view.front.length - beside;
    said.push(`${count(view.front.length, "model")} on the front${dominated ? `, ${dominated} dominated` : ""}.`);
    if (beside)
      said.push(
        `${count(beside, "model")} before retraining (dotted, hollow) ${beside === 1 ? "is" : "are"} beside it: not trained after the cut.`,
      );
    said.push("The steps show the best model at each cost; between two points there is none.");
  }
  if (view.groups.some((g) => g.members.length > 1)) said.push("Large markers are means over seeds, small ones single seeds.");
  said.push(errorSentence(view), alikeSentence(view), int8Sentence(view));
  const runs = new Set(view.groups.map((g) => g.run)).size;
  if (view.unplaced)
    said.push(
      `${count(view.unplaced, "model")} without any error ${view.unplaced === 1 ? "has" : "have"} no place on a logarithmic axis.`,
    );
  if (limitsOn(view).size) said.push("Upright dotted lines are budgets in milliseconds.");
  const untimed = view.x.setting ? untimedIn(view) : 0;
  if (untimed) said.push(`${count(untimed, "model")} not timed in this setting ${untimed === 1 ? "is" : "are"} left out.`);
  if (testMeasure(page, view.y)?.untouched === null && runs > 1 && runs <= 3)
    said.push("Dotted lines are the untouched dense models.");
  if (view.knee) said.push(`Knee: ${view.knee.method} at ${askedOf(view.knee)}.`);
  said.push("MACs are multiply-accumulates per image; papers on vision transformers call them FLOPs.");
  if (page.points.length) said.push("Click a point, or use the arrow keys, to open it.");
  return said.filter(Boolean).join(" ");
}

/**
 * One entry per method, or per series of a run where colours tell runs apart.
 * @param {View} view
 */
function frontLegend(view) {
  const { page } = view;
  const entries = new Map();
  const runs = new Set(view.groups.map((g) => g.run)).size > 1;
  for (const g of view.groups) {
    if (view.cropped && view.outside.has(g)) continue;
    const { colour, symbol, dash } = seriesStyle(page, g.run, g.method);
    const name = runs ? `${page.runs[g.run].name}: ${g.method}` : g.method;
    if (!entries.has(name)) entries.set(name, { name, colour, symbol, dash });
  }
  return [...entries.values()].sort((a, b) => (colourBy(page) === "run" ? 0 : a.name.localeCompare(b.name)));
}
