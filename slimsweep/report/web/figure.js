// The frontier figure.

// Hues that stay apart under the common colour-vision deficiencies; every method has a marker of its own as well.
const METHOD_STYLE = {
  searched: { light: "#0b62b0", dark: "#62aef0", symbol: "circle" },
  dense: { light: "#1d2024", dark: "#f1f3f5", symbol: "diamond" },
  uniform: { light: "#e2500c", dark: "#cf6f10", symbol: "square" },
  random: { light: "#7d7f83", dark: "#8b949c", symbol: "triangle-up" },
  taylor: { light: "#10a86c", dark: "#3fe6a0", symbol: "triangle-down" },
  scratch: { light: "#e368d0", dark: "#d03a6c", symbol: "cross" },
  small: { light: "#6a1fd0", dark: "#6a5cf5", symbol: "pentagon" },
  "torch-pruning": { light: "#5f3d12", dark: "#efd040", symbol: "star" },
};
const OTHER_STYLES = [
  { light: "#3d6b35", dark: "#9bd18f", symbol: "hexagon" },
  { light: "#7a3b1d", dark: "#d99a78", symbol: "hourglass" },
];
const RUN_COLOURS = ["searched", "uniform", "taylor", "scratch", "small", "torch-pruning", "dense", "random"].map(
  (m) => METHOD_STYLE[m],
);
const DASHES = ["solid", "dash", "dot", "longdash"];

const darkMode = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)");
const shade = (style) => (darkMode.matches ? style.dark : style.light);
const theme = () => {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return {
    ink: get("--ink"),
    muted: get("--muted"),
    line: get("--line"),
    back: get("--back"),
    accent: get("--accent"),
    fit: get("--fit"),
    font: style.getPropertyValue("--font").trim(),
  };
};

// A method on equal compute is one of its own: the same colour, a hollow marker, a dashed line.
const EQUAL_COMPUTE = ", equal compute";
const baseOf = (method) => method.replace(EQUAL_COMPUTE, "");

function methodStyle(page, method) {
  const base = baseOf(method);
  const others = page.methods.map(baseOf).filter((m) => !METHOD_STYLE[m]);
  const style = METHOD_STYLE[base] ?? OTHER_STYLES[others.indexOf(base) % OTHER_STYLES.length];
  return base === method ? style : { ...style, symbol: `${style.symbol}-open`, dash: "dash" };
}

const colourBy = (page) => state.colour || (page.runs.length > 1 ? "run" : "method");

// Colour, symbol and dash of a series, a run's method.
function seriesStyle(page, run, method) {
  const byMethod = methodStyle(page, method);
  if (colourBy(page) === "method") return { colour: shade(byMethod), symbol: byMethod.symbol, dash: byMethod.dash ?? "solid" };
  return {
    colour: shade(RUN_COLOURS[run % RUN_COLOURS.length]),
    symbol: byMethod.symbol,
    dash: DASHES[Math.floor(run / RUN_COLOURS.length) % DASHES.length],
  };
}

// An axis in units a person reads: 1.74 MMACs, not 1740000.
function axisScale(metric, values) {
  const largest = Math.max(...values.map(Math.abs), 0);
  if (["%", "nats", "ms", "s", "images/s"].includes(metric.unit)) return { size: 1, unit: metric.unit };
  const [size, prefix] = prefixOf(largest);
  return {
    size,
    unit: metric.unit.startsWith(" ")
      ? `${{ "": "", k: "thousand ", M: "million ", G: "billion " }[prefix] ?? prefix}${metric.unit.trim()}`
      : `${prefix}${metric.unit}`,
  };
}

// Plotly's own ticks on a log axis of less than a decade are bare digits: these are numbers, as many as there is room for.
function logTicks(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (!(low > 0)) return {};
  const fine =
    high / low < 4 ? [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9] : high / low < 100 ? [1, 1.5, 2, 3, 5, 7] : [1, 2, 5];
  const ticks = [];
  for (let decade = Math.floor(Math.log10(low)) - 1; decade <= Math.ceil(Math.log10(high)); decade++)
    for (const digit of fine) ticks.push(digit * 10 ** decade);
  const inside = ticks.filter((t) => t >= low * 0.6 && t <= high * 1.6);
  return { tickvals: inside, ticktext: inside.map((t) => significant(t, 2)) };
}

function hoverOf(view, group) {
  const { page, x, y } = view;
  const p = group.best;
  const run = page.runs[p.run];
  const seeds = group.members.length;
  const all = (of) => group.members.map(of).filter(known);
  const top1 = all((m) => m.test_top1);
  const dense = view.dense[p.run];
  const lines = [`<b>${plain(p.method)}, budget ${plain(asked(p))}</b>`];
  if (page.runs.length > 1) lines.push(plain(run.name));
  lines.push(`${scaled(mean(group.members.map((m) => m.macs)), "MACs")} (${share(p.macs, p.macs_dense)} of dense)`);
  lines.push(`${scaled(p.params, "")} parameters (${share(p.params, p.params_dense)})`);
  if (top1.length) {
    lines.push(`test top-1 ${withSpread(mean(top1), standardError(top1))} %${seeds > 1 ? ` over ${seeds} seeds` : ""}`);
    if (known(dense.top1) && p.method !== "dense") lines.push(`${points(mean(top1) - dense.top1)} against ${dense.what}`);
  }
  if (y.key !== "test_top1") lines.push(`${plain(y.label)} ${show(y, group.y)}`);
  if (!["macs", "params", "model_bytes", "train_seconds"].includes(x.key)) lines.push(`${plain(x.label)}: ${show(x, group.x)}`);
  const rest = [];
  if (known(p.model_bytes)) rest.push(`${scaled(p.model_bytes, "B")} on disk`);
  if (known(p.train_seconds)) rest.push(`trained in ${duration(mean(all((m) => m.train_seconds)))}`);
  if (rest.length) lines.push(rest.join(", "));
  return lines.join("<br>");
}

function seedHover(view, p) {
  return `<b>${plain(p.point)}</b><br>seed ${p.seed}: ${plain(view.y.label)} ${show(view.y, view.y.of(p))}<br>${plain(view.x.label)} ${show(view.x, view.x.of(p))}`;
}

function frontierTraces(view, colours, sx, sy) {
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
      opacity: darkMode.matches ? 0.16 : 0.09,
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
    const [x, y] = [[], []];
    for (const groups of series.values()) {
      for (const g of frontOf(groups, view.x, view.y)) {
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
    const seeds = state.seeds ? groups.filter((g) => g.members.length > 1).flatMap((g) => g.members) : [];
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
      const these = groups.filter((g) => onFront.has(g) !== dominated);
      if (!these.length || (dominated && !state.dominated)) continue;
      traces.push({
        type: "scatter",
        mode: "markers",
        name: dominated ? "dominated" : "front",
        x: these.map((g) => g.x / sx.size),
        y: these.map((g) => g.y / sy.size),
        customdata: these.map((g) => g.best.i),
        text: these.map((g) => hoverOf(view, g)),
        hovertemplate: "%{text}<extra></extra>",
        opacity: dominated ? 0.42 : 1,
        marker: {
          size: (many ? 7 : 10) + (dominated ? 0 : 2),
          color: style.colour,
          symbol: these.map((g) => methodStyle(page, g.method).symbol),
          // The outline of a hollow marker is the marker.
          line: {
            width: these.map((g) => (baseOf(g.method) !== g.method ? 2.5 : dominated ? 0 : 1.5)),
            color: these.map((g) => (baseOf(g.method) !== g.method ? style.colour : colours.back)),
          },
        },
        error_y: these.some((g) => known(g.se))
          ? { type: "data", array: these.map((g) => (g.se ?? 0) / sy.size), color: style.colour, thickness: 1.5, width: 4 }
          : undefined,
      });
    }
  }
  return traces;
}

// A circle in pixels. As a path, for plotly misplaces its own pixel-sized circles on log axes.
const RING = "M-11,0C-11,-6.08 -6.08,-11 0,-11C6.08,-11 11,-6.08 11,0C11,6.08 6.08,11 0,11C-6.08,11 -11,6.08 -11,0Z";

// Around the open point; a shape, because plotly replaces shapes without drawing the points again.
function ring(view, colours, sx, sy) {
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

function answerTrace(view, colours, sx, sy) {
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

// Where the axes end: all that is shown, with room for markers and for a line of text above.
function rangeOf(values, log) {
  if (!values.length) return undefined;
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (log && low > 0) [low, high] = [Math.log10(low), Math.log10(high)];
  const room = high - low || Math.abs(high) * 0.1 || 1;
  return [low - 0.07 * room, high + 0.09 * room];
}

// Where along a line (0 to 1, its ends first) and on which side of it a label of a width covers least of what is `taken`;
// pixels from the lower left.
function freePlace(taken, plotWidth, lineY, width) {
  let best = null;
  for (const along of [0, 1, 0.75, 0.5, 0.25]) {
    for (const side of ["bottom", "top"]) {
      const from = along * (plotWidth - width);
      const to = from + width;
      const [low, high] = side === "bottom" ? [lineY, lineY + 18] : [lineY - 18, lineY];
      const covered = taken.filter(([x, y]) => x > from - 24 && x < to + 24 && y > low - 10 && y < high + 10).length;
      if (!best || covered < best.covered) best = { covered, place: [along, side] };
    }
  }
  return best.place;
}

function guides(view, sx, sy, colours) {
  const [shapes, annotations] = [[], []];
  for (const condition of view.answer?.conditions || []) {
    const macs = condition.kind === "macs" && view.x.key === "macs";
    const other = ["params", "model_bytes"].includes(condition.kind) && view.x.key === condition.kind;
    const timed = view.x.kind === condition.kind && view.x.setting === condition.setting;
    const line = { color: colours.fit, width: 1.5, dash: "dash" };
    if (macs || other || timed) {
      const at = condition.value / sx.size;
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
    } else if ((condition.kind === "top1" && view.y.top1) || (condition.kind === "top5" && view.y.key === "test_top5")) {
      shapes.push({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: condition.value, y1: condition.value, line });
      annotations.push({
        xref: "paper",
        yref: "y",
        x: 1,
        y: view.logy ? Math.log10(condition.value) : condition.value,
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

function frontierLayout(view, colours, sx, sy) {
  const narrow = byId("frontier-figure").clientWidth < 520;
  const drawn = view.groups.filter((g) => state.dominated || view.front.includes(g));
  const members = state.seeds ? drawn.flatMap((g) => g.members) : [];
  const xs = [...drawn.map((g) => g.x), ...members.map(view.x.of)].map((v) => v / sx.size);
  const ys = [...drawn.flatMap((g) => [g.y - (g.se ?? 0), g.y + (g.se ?? 0)]), ...members.map(view.y.of)].map(
    (v) => v / sy.size,
  );
  const { shapes, annotations } = guides(view, sx, sy, colours);
  const [marginLeft, marginRight] = [narrow ? 48 : 64, narrow ? 8 : 16];

  // The dense model as it came, a line for each run: for a few runs only, or they would be all there is to see.
  const key = { test_top1: "untouched" }[view.y.key];
  const runs = [...new Set(view.groups.map((g) => g.run))].filter((r) => known(view.page.runs[r].untouched));
  let untouchedLabel = null;
  if (key && runs.length <= 3) {
    for (const r of runs) {
      const value = view.page.runs[r].untouched;
      const color = colourBy(view.page) === "run" ? seriesStyle(view.page, r, "dense").colour : colours.muted;
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
      if (runs.length === 1) untouchedLabel = { value, color, text: `dense, untouched: ${percent(value)}` };
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
  const height = narrow ? 380 : 460;
  if (untouchedLabel) {
    const size = [byId("frontier-figure").clientWidth - marginLeft - marginRight, height - 64];
    const at = (value, axis, log) =>
      ((log ? Math.log10(value) : value) - ranges[axis][0]) / (ranges[axis][1] - ranges[axis][0]);
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
  const sense = (metric) => (metric.more ? "" : metric.unit === "nats" ? ", less is better" : "");
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
      title: title(
        view.x.key === "macs" ? (narrow ? sx.unit : `${sx.unit} of one image`) : `${plain(view.x.label)}, ${sx.unit}`,
      ),
      ...(view.logx ? logTicks(xs) : {}),
    },
    yaxis: {
      ...axis,
      type: view.logy ? "log" : "linear",
      range: ranges[1],
      title: title(`${plain(view.y.label)}, ${sy.unit}${sense(view.y)}`),
      ...(view.logy ? logTicks(ys) : {}),
    },
    shapes,
    annotations,
    uirevision: JSON.stringify([state.x, state.y, view.logx, view.logy, state.data]),
  };
}

function drawFrontier(view) {
  const node = byId("frontier-figure");
  if (!window.Plotly) return; // not unpacked yet: drawn when it is
  if (!view.groups.length) {
    Plotly.purge(node);
    node.replaceChildren(
      el(
        "p",
        { class: "empty" },
        view.page.points.length
          ? "Nothing to show: every series with these numbers is switched off."
          : "No point has landed yet. This page shows each one as it does.",
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
  const traces = [...frontierTraces(view, colours, sx, sy), answerTrace(view, colours, sx, sy)];
  const layout = frontierLayout(view, colours, sx, sy);
  view.scales = [sx, sy];
  view.shapes = layout.shapes;
  layout.shapes = [...view.shapes, ...ring(view, colours, sx, sy)];
  const first = !node.querySelector(".plot-container");
  Plotly.react(node, traces, layout, { displayModeBar: false, responsive: true, doubleClick: "reset", scrollZoom: false });
  if (first) {
    node.on("plotly_click", (event) => {
      const hit = event.points.find((p) => p.customdata !== undefined);
      if (hit) choose(view.page.points[hit.customdata]);
    });
  }
}

// Only the ring moves when another point is opened.
function moveRing(view) {
  if (view.shapes)
    Plotly.relayout(byId("frontier-figure"), { shapes: [...view.shapes, ...ring(view, theme(), ...view.scales)] });
}

function frontierCaption(view) {
  const { page } = view;
  const said = [];
  if (view.front.length) {
    const dominated = view.groups.length - view.front.length;
    said.push(`${count(view.front.length, "model")} on the front${dominated ? `, ${dominated} dominated` : ""}.`);
    said.push("The steps show the best model to be had at each cost; between two points there is none.");
  }
  if (view.groups.some((g) => g.members.length > 1))
    said.push("Large markers are means over seeds with their standard error, small ones single seeds.");
  const runs = new Set(view.groups.map((g) => g.run)).size;
  if (view.y.key === "test_top1" && runs > 1 && runs <= 3) said.push("Dotted lines are the dense models as they came.");
  if (view.knee) said.push(`Knee: ${view.knee.method} at ${asked(view.knee)}.`);
  said.push("MACs are multiply-accumulates of one image; papers on vision transformers call them FLOPs.");
  if (page.points.length) said.push("Click a point, or use the arrow keys, to open it.");
  return said.join(" ");
}

// A marker as it is in the figure, for chips and tables.
function markerIcon(page, method, colour) {
  const symbol = methodStyle(page, method).symbol.replace("-open", "");
  const hollow = baseOf(method) !== method;
  const shapes = {
    circle: "M8 3a5 5 0 1 0 .01 0z",
    diamond: "M8 1.5L14.5 8 8 14.5 1.5 8z",
    square: "M3.5 3.5h9v9h-9z",
    "triangle-up": "M8 2.5l6 10.5H2z",
    "triangle-down": "M8 13.5L2 3h12z",
    cross: "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z",
    pentagon: "M8 2l6 4.4-2.3 7H4.3L2 6.4z",
    star: "M8 1l2 5h5l-4 3.4 1.5 5.1L8 11.4l-4.5 3.1L5 9.4 1 6h5z",
    hexagon: "M8 1.8l5.4 3.1v6.2L8 14.2l-5.4-3.1V4.9z",
    hourglass: "M3 2h10L8 8l5 6H3l5-6z",
  };
  return svg(
    "svg",
    { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true", class: "marker" },
    svg("path", { d: shapes[symbol], ...(hollow ? { fill: "none", stroke: colour, "stroke-width": 2 } : { fill: colour }) }),
  );
}

async function downloadFigure(id, format) {
  const node = byId(id);
  if (!node?.data) return;
  const [width, height] = [Math.max(node.clientWidth, 720), node.clientHeight];
  const url = await Plotly.toImage(node, { format, width, height, scale: format === "png" ? 2 : 1 });
  el("a", { href: url, download: `${id.replace(/-figure$/, "")}.${format}` }).click();
}
