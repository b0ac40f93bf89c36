// Where the figure's axes are, and the lines and labels on it: limits of a question, the untouched dense model, the knee.

import { freePlace, logTicks, rangeOf } from "./axes.js";
import { byId } from "./dom.js";
import { known, plain, show } from "./format.js";
import { int8Places } from "./int8.js";
import { limitLines, limitsOn } from "./limits.js";
import { measureOf, placedMembers, testMeasure } from "./metrics.js";
import { leftOut } from "./outside.js";
import { state } from "./state.js";
import { colourBy, runStyle, touch } from "./styles.js";

/** @import { View } from "./types.js" */

/** @param {View} view */
function guides(view, sx, sy, colours) {
  /** @type {[object[], object[]]} */
  const [shapes, annotations] = [[], []];
  for (const condition of view.answer?.conditions || []) {
    const onX = condition.metric ? view.x.key === condition.metric : view.x.name === condition.kind;
    const measure = view.page.measures[condition.kind];
    const asked = measure ? [measure.val, measure.test] : [condition.kind === "top5" ? "test_top5" : condition.kind];
    const onY = asked.includes(view.y.error ? view.y.error.of : view.y.key);
    const level = view.y.error ? view.y.error.best - condition.value : condition.value;
    const line = { color: colours.fit, width: 1.5, dash: "dash" };
    const at = condition.value / sx.size;
    if ((onX && view.logx && !(at > 0)) || (onY && view.logy && !(level > 0))) continue; // no place on a logarithmic axis
    if (onX) {
      shapes.push({ type: "line", xref: "x", yref: "paper", x0: at, x1: at, y0: 0, y1: 1, line });
      annotations.push({
        xref: "x",
        yref: "paper",
        x: view.logx ? Math.log10(at) : at,
        y: 0,
        yanchor: "bottom",
        xanchor: condition.most ? "right" : "left",
        text: plain(condition.text),
        showarrow: false,
        font: { color: colours.fit, size: 12 },
        bgcolor: colours.back,
      });
    } else if (onY) {
      shapes.push({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: level, y1: level, line });
      annotations.push({
        xref: "paper",
        yref: "y",
        x: 1,
        y: view.logy ? Math.log10(level) : level,
        xanchor: "right",
        yanchor: condition.most ? "top" : "bottom",
        text: plain(condition.text),
        showarrow: false,
        font: { color: colours.fit, size: 12 },
        bgcolor: colours.back,
      });
    }
  }
  return { shapes, annotations };
}

/** @param {View} view */
export function frontLayout(view, colours, sx, sy) {
  const narrow = byId("front-figure").clientWidth < 520;
  const drawn = view.groups.filter(
    (g) => (state.dominated || view.front.includes(g)) && !(view.cropped && view.outside.has(g)),
  );
  const members = state.seeds ? placedMembers(drawn, view.x, view.y) : [];
  const xs = [...drawn.map((g) => g.x), ...members.map(view.x.of), ...limitsOn(view).keys()].map((v) => v / sx.size);
  const ys = [...drawn.flatMap((g) => [g.y - (g.yse ?? 0), g.y + (g.yse ?? 0)]), ...members.map(view.y.of)].map(
    (v) => v / sy.size,
  );
  for (const { x, y } of int8Places(view)) {
    xs.push(x / sx.size);
    ys.push(y / sy.size);
  }
  const { shapes, annotations } = guides(view, sx, sy, colours);
  const limits = limitLines(view, sx, colours);
  shapes.push(...limits.shapes);
  annotations.push(...limits.annotations);
  const [marginLeft, marginRight] = [narrow ? 48 : 64, narrow ? 8 : 16];

  // The dense model as it came, a line for each run: for a few runs only, or they would be all there is to see.
  const runs = [...new Set(view.groups.map((g) => g.run))].filter((r) => known(view.page.runs[r].untouched));
  /** @type {{ value: any, color: string, text: string } | null} */
  let untouchedLabel = null;
  if (testMeasure(view.page, view.y)?.untouched === null && runs.length <= 3) {
    for (const r of runs) {
      const value = view.page.runs[r].untouched;
      if (leftOut(view, value)) continue;
      const color = colourBy(view.page) === "run" ? runStyle(view.page, r).colour : colours.muted;
      ys.push(value);
      shapes.push({
        type: "line",
        xref: "paper",
        yref: "y",
        x0: 0,
        x1: 1,
        y0: value,
        y1: value,
        line: { color, width: 1.25, dash: "dot" },
        layer: "below",
      });
      if (runs.length === 1)
        untouchedLabel = { value, color, text: `${narrow ? "" : "dense, "}untouched: ${show(measureOf(view.page, r), value)}` };
    }
  }
  if (view.knee) {
    const [kx, ky] = [view.knee.x / sx.size, view.knee.y / sy.size];
    // Above and to the better side of a front nothing can lie, so a label is never on a point there.
    annotations.push({
      x: view.logx ? Math.log10(kx) : kx,
      y: view.logy ? Math.log10(ky) : ky,
      ax: view.x.more ? 34 : -34,
      ay: view.y.more ? -32 : 32,
      text: "knee",
      name: "knee",
      showarrow: true,
      arrowhead: 0,
      arrowwidth: 1,
      arrowcolor: colours.muted,
      standoff: 9,
      font: { color: colours.ink, size: 13 },
      bgcolor: colours.back,
    });
  }
  const ranges = [rangeOf(xs, view.logx), rangeOf(ys, view.logy)];
  const paper = document.documentElement.classList.contains("paper"); // title, tiles and figure on one landscape sheet
  const height = paper ? 320 : narrow ? 340 : innerWidth >= 1500 ? 620 : 460;
  if (untouchedLabel) {
    const size = [byId("front-figure").clientWidth - marginLeft - marginRight, height - 64];
    const at = (value, axis, log) =>
      ((log ? Math.log10(value) : value) - ranges[axis][0]) / (ranges[axis][1] - ranges[axis][0]);
    /** @type {[number, number][]} */
    const taken = drawn.map((g) => [at(g.x / sx.size, 0, view.logx) * size[0], at(g.y / sy.size, 1, view.logy) * size[1]]);
    if (view.knee) {
      const [kx, ky] = taken[drawn.indexOf(view.knee)];
      taken.push([kx - 34, ky + 32], [kx - 20, ky + 20]);
    }
    const { value, color, text } = untouchedLabel;
    const width = 6.2 * text.length;
    const [along, side] = freePlace(taken, size[0], at(value, 1, view.logy) * size[1], width);
    annotations.push({
      xref: "paper",
      yref: "y",
      x: along === 1 ? 1 : (along * (size[0] - width)) / size[0],
      y: view.logy ? Math.log10(value) : value,
      xanchor: along === 1 ? "right" : "left",
      yanchor: side,
      showarrow: false,
      text,
      font: { color, size: 12 },
    });
  }
  if (view.mixed) {
    annotations.push({
      xref: "paper",
      yref: "paper",
      x: 0,
      y: 1,
      xanchor: "left",
      yanchor: "top",
      showarrow: false,
      text: "several data sets on one axis: accuracies do not compare",
      font: { color: colours.fit, size: 13 },
      bgcolor: colours.back,
    });
  }
  const axis = {
    gridcolor: colours.line,
    linecolor: colours.line,
    zeroline: false,
    ticks: "",
    tickfont: { color: colours.muted },
    automargin: true,
    fixedrange: touch.matches,
  };
  const title = (text) => ({ text, font: { color: colours.ink, size: 13 }, standoff: 8 });
  // A unit may say all that the label says: "parameters, thousands".
  const titleOf = (metric, scale) =>
    metric.unit === metric.label ? scale.unit : [plain(metric.label), scale.unit].filter(Boolean).join(", ");
  const sense = view.y.more ? "" : ", less is better";
  return {
    height,
    margin: { l: marginLeft, r: marginRight, t: 12, b: 52 },
    paper_bgcolor: colours.back,
    plot_bgcolor: colours.back,
    font: { family: colours.font, size: 13, color: colours.ink },
    showlegend: false,
    hovermode: "closest",
    dragmode: touch.matches ? false : "zoom",
    hoverlabel: {
      bgcolor: colours.back,
      bordercolor: colours.muted,
      font: { family: colours.font, color: colours.ink, size: 13 },
      align: "left",
      namelength: -1,
    },
    xaxis: {
      ...axis,
      type: view.logx ? "log" : "linear",
      range: ranges[0],
      title: title(view.x.key === "macs" && !narrow ? `${sx.unit} per image` : titleOf(view.x, sx)),
      ...(view.logx ? logTicks(xs) : {}),
    },
    yaxis: {
      ...axis,
      type: view.logy ? "log" : "linear",
      range: ranges[1],
      title: title(`${titleOf(view.y, sy)}${sense}`),
      ...(view.logy ? logTicks(ys) : {}),
    },
    shapes,
    annotations,
    uirevision: JSON.stringify([view.x.key, view.y.key, view.logx, view.logy, state.data, state.whole]),
  };
}
