// The search: how gates fell, where they ended, and the accuracy meanwhile. Drawn when it comes into sight.

import { byId, el } from "./dom.js";
import { describeFigure } from "./download.js";
import { count, plain, show } from "./format.js";
import { measureOf } from "./metrics.js";
import { drawLeaving } from "./leaving.js";
import { plotly } from "./plotly.js";
import { drawPanels, panelsHeight } from "./panels.js";
import { lineIcon, shade, theme } from "./styles.js";

/** @import { View } from "./types.js" */

const FAMILY_STYLE = {
  attention: { light: "#0b62b0", dark: "#62aef0", dash: "solid" },
  mlp: { light: "#d55e00", dark: "#ff9b57", dash: "dash" },
  token: { light: "#00856a", dark: "#2fc7a3", dash: "dot" },
};
const OTHER_FAMILY = { light: "#6a1fd0", dark: "#6a5cf5", dash: "longdash" };
const FAMILY_NAMES = { attention: "attention dims", mlp: "MLP units", token: "patch tokens" };

/** @type {IntersectionObserver | null} */
let searchWatcher = null;

/** @param {View} view */
export function drawSearch(view) {
  const section = byId("search");
  const { page } = view;
  const run = view.selected ? view.selected.run : view.runs[0];
  const search = run === undefined ? null : page.runs[run].search;
  const pace = search && page.runs[run].pace;
  section.hidden = !search;
  if (!search || !plotly()) return; // drawn again once the library is there
  if (section.dataset.run === String(run)) return;
  section.dataset.run = run;
  const { gates, leaving } = page.runs[run];
  const gatePanels = leaving?.families ? Object.keys(leaving.families).length + 1 : Object.keys(gates).length;
  section.replaceChildren(
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "search-title" }, "Search"),
      el(
        "span",
        { class: "downloads" },
        el("button", { type: "button", "data-figure": "search-figure", "data-format": "svg" }, "SVG"),
        el("button", { type: "button", "data-figure": "search-figure", "data-format": "png" }, "PNG"),
      ),
    ),
    el(
      "p",
      { class: "caption" },
      `${page.runs.length > 1 ? `${page.runs[run].name}: one` : "One"} search of ${count(search.epoch[search.epoch.length - 1], "epoch")} gave every searched point its structure. A bold line is the mean of a family over its layers, a thin one is one layer.`,
    ),
    el(
      "div",
      { class: "chips", role: "img", "aria-label": "Colours of the families" },
      ...Object.keys(search.families).map((f) =>
        el("span", { class: "key" }, lineIcon(26, shade(familyStyle(f)), familyStyle(f).dash), FAMILY_NAMES[f] || f),
      ),
    ),
    el("div", { id: "search-figure", class: "figure" }),
    el("div", { id: "gates-figure", class: "figure", hidden: !gatePanels }),
    el(
      "p",
      { class: "caption", id: "gates-caption", hidden: !leaving?.families },
      "Where the gates ended. The faintest leave first, on the way to the largest budget; the next shade leaves by the next one; the full colour stays at the smallest budget. On the right: how much of each family every budget keeps.",
    ),
    ...(pace ? [el("p", { class: "caption", id: "pace" }, paceSentence(pace, measureOf(page, run)))] : []),
  );
  // A figure that is drawn when it comes into sight must not push away what is read, or clicked on, below it.
  byId("search-figure").style.minHeight = `${panelsHeight(curvesOf(search).length + 1, isNarrow())}px`;
  byId("gates-figure").style.minHeight = `${panelsHeight(gatePanels, isNarrow())}px`;
  if (searchWatcher) searchWatcher.disconnect();
  searchWatcher = new IntersectionObserver(
    (entries) => {
      if (!entries.some((e) => e.isIntersecting)) return;
      searchWatcher.disconnect();
      drawSearchFigures(page.runs[run], measureOf(page, run));
    },
    { rootMargin: "300px" },
  );
  searchWatcher.observe(byId("search-figure"));
}

function paceSentence({ chosen, budget, unit, val }, measure) {
  const shown = (value) => show(measure, value);
  const paces = Object.entries(chosen).map(([family, value]) => `${FAMILY_NAMES[family] || family} ${value}`);
  const others =
    val.length > 2
      ? `, the others ${shown(val[val.length - 1])} to ${shown(val[1])}`
      : val.length > 1
        ? `, the other ${shown(val[1])}`
        : "";
  return `Pace at which the families' gates are removed: ${paces.join(", ")}. Where pace 1 keeps a share s, pace p keeps s to the power of p. After a short retraining at ${(100 * budget).toPrecision(2)} % of ${unit === "macs" ? "the MACs" : unit}, this pace was the best on validation: ${shown(val[0])}${others}.`;
}

const isNarrow = () => byId("search-figure").clientWidth < 620;

/** @typedef {["mean" | "below", string, number]} Curve a panel of the gates against the epoch: field, title and factor */
/** @type {Curve} */
const MEAN = ["mean", "mean gate", 1];
/** @type {Curve} */
const BELOW = ["below", "gates below 0.01, %", 100];

/**
 * What is drawn of a search beside its accuracy.
 * @param {any} search
 */
function curvesOf(search) {
  // Gates under some penalties never come near 0 before they are cut: a line at 0 would look like a search that failed.
  const near0 = Object.values(search.families).some((series) => series.below.mean.some((value) => value > 0));
  return near0 ? [MEAN, BELOW] : [MEAN];
}

const familyStyle = (family) => FAMILY_STYLE[family] ?? OTHER_FAMILY;

function drawSearchFigures(run, measure) {
  const colours = theme();
  const { search, gates } = run;
  const narrow = isNarrow();
  const traces = [];
  const panels = curvesOf(search);
  for (const [family, series] of Object.entries(search.families)) {
    const style = familyStyle(family);
    for (const [n, [field, , factor]] of panels.entries()) {
      const axes = n ? { xaxis: "x2", yaxis: "y2" } : {};
      const scale = (values) => values.map((value) => (value === null ? null : factor * value));
      for (const [layer, values] of series[field].layers.entries())
        traces.push({
          type: "scatter",
          mode: "lines",
          x: search.gate_epoch,
          y: scale(values),
          line: { color: shade(style), width: 1 },
          opacity: 0.28,
          hovertemplate: `${plain(FAMILY_NAMES[family] || family)}, layer ${layer}, epoch %{x}: %{y:.3g}<extra></extra>`,
          ...axes,
        });
      traces.push({
        type: "scatter",
        mode: "lines",
        x: search.gate_epoch,
        y: scale(series[field].mean),
        line: { color: shade(style), width: 2.5, dash: style.dash },
        hovertemplate: `${plain(FAMILY_NAMES[family] || family)}, epoch %{x}: %{y:.3g}<extra></extra>`,
        ...axes,
      });
    }
  }
  traces.push({
    type: "scatter",
    mode: "lines+markers",
    x: search.epoch,
    y: search.val,
    marker: { size: 4 },
    line: { color: colours.ink, width: 2 },
    xaxis: `x${panels.length + 1}`,
    yaxis: `y${panels.length + 1}`,
    hovertemplate: `epoch %{x}: %{y:.${measure.decimals}f}${measure.unit && ` ${measure.unit}`}<extra></extra>`,
  });
  const titles = [...panels.map((p) => p[1]), [`validation ${measure.title}`, measure.unit].filter(Boolean).join(", ")];
  describeFigure("search-figure", () => ({
    title: "the search",
    legend: Object.keys(search.families).map((f) => ({
      name: FAMILY_NAMES[f] || f,
      colour: shade(familyStyle(f)),
      dash: familyStyle(f).dash,
    })),
  }));
  drawPanels("search-figure", traces, titles, narrow, colours, "epoch", { fromZero: panels.map((_, n) => n) });

  const families = Object.entries(gates);
  if (run.leaving?.families) {
    describeFigure("gates-figure", () => ({
      title: "where the gates ended, and what leaves at each budget",
      legend: Object.keys(run.leaving.families).map((f) => ({ name: FAMILY_NAMES[f] || f, colour: shade(familyStyle(f)) })),
    }));
    const { unit } = run.leaving;
    drawLeaving("gates-figure", run.leaving, {
      ...{ name: (family) => FAMILY_NAMES[family] || family, colour: (family) => shade(familyStyle(family)) },
      ...{ colours, narrow, unit: unit === "macs" ? "the MACs" : unit },
    });
    return;
  }
  if (!families.length) return;
  const bars = families.map(([family, { edges, counts }], n) => ({
    type: "bar",
    x: counts.map((_, i) => (edges[i] + edges[i + 1]) / 2),
    y: counts,
    width: edges[1] - edges[0],
    marker: { color: shade(familyStyle(family)), line: { width: 0 } },
    customdata: counts.map((_, i) => [edges[i].toFixed(3), edges[i + 1].toFixed(3)]),
    hovertemplate: "%{y} gates from %{customdata[0]} to %{customdata[1]}<extra></extra>",
    ...(n ? { xaxis: `x${n + 1}`, yaxis: `y${n + 1}` } : {}),
  }));
  drawPanels(
    "gates-figure",
    bars,
    families.map(
      ([family, { counts }]) =>
        `${count(
          counts.reduce((a, b) => a + b, 0),
          `${(FAMILY_NAMES[family] || family).replace(/s$/, "")} gate`,
        )} at the end`,
    ),
    narrow,
    colours,
    "value of the gate",
    { fromZero: [0, 1, 2] },
  );
}
