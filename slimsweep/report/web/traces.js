// What the figure draws: fronts, means, seeds, and what is said when the pointer is over them.

import { difference, duration, known, plain, scaled, share, show, showSpread } from "./format.js";
import { paretoFront } from "./front.js";
import { int8Hover, int8Places, SYMBOL } from "./int8.js";
import { askedOf, isDense, isTrained, LATENCIES, latencyMetric, measureOf, placedMembers } from "./metrics.js";
import { state } from "./state.js";
import { isDark, seriesStyle } from "./styles.js";
import { alikeOf, meanApartFromDense } from "./uncertainty.js";

/** @import { Placed, View } from "./types.js" */

/** @param {View} view */
function hoverOf(view, group) {
  const { page, x, y } = view;
  const p = group.best;
  const seeds = group.members.length;
  const { mean, se } = group;
  const dense = view.dense[p.run];
  const measure = measureOf(page, p.run);
  const [test, spread] = [mean[measure.test], se[measure.test]];
  const lines = [`<b>${plain(p.method)}, budget ${plain(askedOf(p))}</b>`];
  if (page.runs.length > 1) lines.push(plain(page.runs[p.run].name));
  lines.push(`${scaled(mean.macs, "MACs")} (${share(p.macs, p.macs_dense)} of dense)`);
  lines.push(`${scaled(p.params, "parameters")} (${share(p.params, p.params_dense)})`);
  if (known(test)) {
    lines.push(`test ${measure.title} ${showSpread(measure, test, spread)}${seeds > 1 ? ` over ${seeds} seeds` : ""}`);
    if (known(dense.test) && !isDense(p)) {
      const within = meanApartFromDense(view, group) ? "" : ", within the error";
      lines.push(`${difference(measure, test - dense.test)} against ${dense.what}${within}`);
    }
  }
  if (y.key !== measure.test) lines.push(`${plain(y.label)} ${show(y, group.y)}`);
  if (!["macs", "params", "model_bytes", "train_seconds"].includes(x.key)) lines.push(`${plain(x.label)}: ${show(x, group.x)}`);
  const latency = latencyMetric(view);
  if (latency?.name === LATENCIES[0] && latency.key !== x.key && known(mean[latency.key]))
    lines.push(`${plain(latency.label)}: ${show(latency, mean[latency.key])}`);
  const rest = [];
  if (known(p.model_bytes)) rest.push(`${scaled(p.model_bytes, "B")} on disk`);
  if (!isTrained(page, p)) rest.push("not trained after the cut");
  else if (known(mean.train_seconds)) rest.push(`trained in ${duration(mean.train_seconds)}`);
  if (rest.length) lines.push(rest.join(", "));
  const alike = alikeOf(view, group);
  if (alike.length && alike.length <= 3)
    lines.push(`alike: ${alike.map((g) => plain(`${g.method} at ${askedOf(g)}`)).join(", ")}`);
  else if (alike.length) lines.push(`alike: ${alike.length} other models`);
  return lines.join("<br>");
}

/** @param {View} view */
function seedHover(view, p) {
  return `<b>${plain(p.method)}, budget ${plain(askedOf(p))}, seed ${p.seed}</b><br>${plain(view.y.label)} ${show(view.y, view.y.of(p))}<br>${plain(view.x.label)} ${show(view.x, view.x.of(p))}`;
}

/**
 * @param {View} view
 * @param {Map<Placed, number>} sizes of markers
 */
export function frontTraces(view, colours, sx, sy, sizes) {
  const { page } = view;
  const shape = view.x.more ? "vh" : "hv";
  const onFront = new Set(view.front);
  const traces = [];
  // The whole front (of each data set), as a broad band under everything.
  for (const front of view.fronts) {
    traces.push({
      type: "scatter",
      mode: "lines",
      hoverinfo: "skip",
      line: { shape, width: 11, color: colours.ink },
      opacity: isDark() ? 0.16 : 0.09,
      x: front.map((g) => g.x / sx.size),
      y: front.map((g) => g.y / sy.size),
    });
  }
  // Series of one look share a trace: a page of twenty runs would be slow with one for each.
  const looks = new Map();
  for (const group of view.groups) {
    const style = seriesStyle(page, group.run, group.method);
    const key = `${style.colour}|${style.dash}`;
    if (!looks.has(key)) looks.set(key, { style, series: new Map(), groups: [] });
    const look = looks.get(key);
    look.groups.push(group);
    const series = `${group.run}|${group.method}`;
    if (!look.series.has(series)) look.series.set(series, []);
    look.series.get(series).push(group);
  }
  for (const { style, series } of looks.values()) {
    /** @type {[(number | null)[], (number | null)[]]} */
    const [x, y] = [[], []];
    for (const groups of series.values()) {
      for (const g of paretoFront(groups, view.x.more, view.y.more)) {
        x.push(g.x / sx.size);
        y.push(g.y / sy.size);
      }
      x.push(null);
      y.push(null);
    }
    traces.push({
      type: "scatter",
      mode: "lines",
      hoverinfo: "skip",
      connectgaps: false,
      line: { shape, width: 2, color: style.colour, dash: style.dash },
      opacity: 0.75,
      x,
      y,
    });
  }
  const many = view.groups.length > 150;
  for (const { style, groups } of looks.values()) {
    const several = groups.filter((g) => g.members.length > 1);
    const seeds = state.seeds ? placedMembers(several, view.x, view.y) : [];
    if (seeds.length) {
      traces.push({
        type: "scatter",
        mode: "markers",
        name: "seeds",
        x: seeds.map((p) => view.x.of(p) / sx.size),
        y: seeds.map((p) => view.y.of(p) / sy.size),
        customdata: seeds.map((p) => p.i),
        text: seeds.map((p) => seedHover(view, p)),
        hovertemplate: "%{text}<extra></extra>",
        marker: { size: many ? 3 : 5, color: style.colour, opacity: 0.45, symbol: "circle" },
      });
    }
    for (const dominated of [true, false]) {
      const spread = groups.filter((g) => known(g.yse) && onFront.has(g) !== dominated);
      if (!spread.length || (dominated && !state.dominated)) continue;
      traces.push({
        type: "scatter",
        mode: "none",
        hoverinfo: "skip",
        x: spread.map((g) => g.x / sx.size),
        y: spread.map((g) => g.y / sy.size),
        opacity: dominated ? 0.5 : 1,
        error_y: { type: "data", array: spread.map((g) => g.yse / sy.size), color: style.colour, thickness: 1.5, width: 4 },
      });
    }
  }
  // All markers in one trace, the largest at the bottom, so that none hides another.
  const drawn = view.groups
    .filter((g) => state.dominated || onFront.has(g))
    .sort((a, b) => Number(onFront.has(a)) - Number(onFront.has(b)) || sizes.get(b) - sizes.get(a));
  const styles = drawn.map((g) => seriesStyle(page, g.run, g.method));
  const hollow = drawn.map((g) => page.looks[g.method].hollow);
  traces.push({
    type: "scatter",
    mode: "markers",
    name: "models",
    x: drawn.map((g) => g.x / sx.size),
    y: drawn.map((g) => g.y / sy.size),
    customdata: drawn.map((g) => g.best.i),
    text: drawn.map((g) => hoverOf(view, g)),
    hovertemplate: "%{text}<extra></extra>",
    marker: {
      size: drawn.map((g) => sizes.get(g)),
      opacity: drawn.map((g) => (onFront.has(g) ? 1 : 0.6)),
      color: styles.map((s) => s.colour),
      symbol: drawn.map((g) => page.looks[g.method].symbol),
      // The outline of a hollow marker is the marker; the others have one that sets them apart from what is below.
      line: {
        width: hollow.map((open) => (open ? 2.5 : 1.5)),
        color: drawn.map((_, i) => (hollow[i] ? styles[i].colour : colours.back)),
      },
    },
  });
  return traces;
}

/**
 * INT8 versions of the models shown, each in its method's colour.
 * @param {View} view
 */
export function int8Trace(view, sx, sy) {
  const places = int8Places(view);
  return {
    type: "scatter",
    mode: "markers",
    name: "INT8",
    x: places.map(({ x }) => x / sx.size),
    y: places.map(({ y }) => y / sy.size),
    customdata: places.map(({ p }) => p.i),
    text: places.map(({ p }) => int8Hover(view.page, p)),
    hovertemplate: "%{text}<extra></extra>",
    marker: {
      size: 12,
      symbol: SYMBOL,
      color: places.map(({ p }) => seriesStyle(view.page, p.run, p.method).colour),
      line: { width: 1.5 },
    },
  };
}

// A circle in pixels. As a path, for plotly misplaces its own pixel-sized circles on log axes.
const RING = "M-11,0C-11,-6.08 -6.08,-11 0,-11C6.08,-11 11,-6.08 11,0C11,6.08 6.08,11 0,11C-6.08,11 -11,6.08 -11,0Z";

/**
 * Around the open point; a shape, because plotly replaces shapes without drawing the points again.
 * @param {View} view
 */
export function ring(view, colours, sx, sy) {
  const group = view.selected && view.groups.find((g) => g.members.includes(view.selected));
  if (!group || !(state.dominated || view.front.includes(group))) return [];
  const line = { color: colours.accent, width: 2.5 };
  return [
    {
      type: "path",
      path: RING,
      name: "selected",
      xref: "x",
      yref: "y",
      xsizemode: "pixel",
      ysizemode: "pixel",
      xanchor: group.x / sx.size,
      yanchor: group.y / sy.size,
      line,
    },
  ];
}

/** @param {View} view */
export function answerTrace(view, colours, sx, sy) {
  const fits = view.answer?.fits ? view.groups.filter((g) => g.members.some((p) => view.answer.fits.has(p))) : [];
  return {
    type: "scatter",
    mode: "markers",
    hoverinfo: "skip",
    name: "fits",
    x: fits.map((g) => g.x / sx.size),
    y: fits.map((g) => g.y / sy.size),
    marker: { size: 17, symbol: "circle-open", color: colours.fit, line: { width: 1.5, color: colours.fit } },
  };
}
