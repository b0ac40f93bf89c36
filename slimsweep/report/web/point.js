// A point opened: what it is, what it keeps, what differs from its neighbour on the front, how it trained, how to load it.

import { actions } from "./actions.js";
import { besideOf, curveName, curvesChoice } from "./curves.js";
import { byId, copyButton, el } from "./dom.js";
import { describeFigure } from "./download.js";
import {
  bare,
  capital,
  count,
  difference,
  fixed,
  known,
  plain,
  share,
  show,
  signed,
  significant,
  withSpread,
} from "./format.js";
import { int8Columns } from "./int8.js";
import { differenceTable, keptCard, tokenCard } from "./layers.js";
import { askedOf, budgetOf, groupOf, isDense, isTrained, LATENCIES, measureOf, neighbourOf, sharesOf } from "./metrics.js";
import { chosenOther, keepChoice, otherOptions } from "./other.js";
import { plotly } from "./plotly.js";
import { drawPanels } from "./panels.js";
import { downloadsAt } from "./served.js";
import { state, writeState } from "./state.js";
import { markerIcon, seriesStyle, theme } from "./styles.js";
import { alikeOf, apartFromDense, errorOfOne, seedsOf } from "./uncertainty.js";

/** @import { Page, View } from "./types.js" */

const COMPARE = { smaller: "next smaller on the front", larger: "next larger on the front", dense: "dense model" };

/** @param {View} view */
export function drawPoint(view) {
  const section = byId("point");
  const p = view.selected;
  section.hidden = !p;
  if (!p) return;
  const { page } = view;
  const group = groupOf(view, p);
  const parts = [pointHead(view, p, group), pointFacts(view, p, group)];
  if (p.status !== "ok") parts.push(el("pre", { class: "error" }, p.error || "no error text"));
  const grid = el("div", { class: "point-grid" });
  const other = comparedWith(view, p);
  if (p.layers) {
    const beside = other?.structure ? other : null;
    grid.append(keptCard(page, p.layers, beside), differenceCard(view, p, other), tokenCard(page, p.layers, beside));
  } else {
    grid.append(
      el(
        "article",
        {},
        el("h3", {}, "Kept in each layer"),
        el("p", { class: "muted" }, "The structure of this point cannot be read."),
      ),
      differenceCard(view, p, other),
    );
  }
  grid.append(trainingCard(view, p), loadCard(page, p));
  parts.push(grid);
  section.replaceChildren(...parts);
  drawTraining(view, p, group);
}

/** @param {View} view */
function pointHead(view, p, group) {
  const { page } = view;
  const step = (by, label, symbol) => {
    const target = neighbourOf(view, p, by);
    return el(
      "button",
      { type: "button", "aria-label": label, title: label, disabled: !target, onclick: () => actions.choose(target.best) },
      symbol,
    );
  };
  const head = el(
    "div",
    { class: "section-head" },
    el(
      "h2",
      { id: "point-title" },
      markerIcon(page, p.method, seriesStyle(page, p.run, p.method).colour),
      ` ${p.method} at ${budgetOf(p)}${p.unit === "macs" ? " of the MACs" : ""}${p.shares ? `: ${sharesOf(p)}` : ""}`,
    ),
    el(
      "span",
      { class: "downloads" },
      step(-1, "Next smaller on the front", "← smaller"),
      step(1, "Next larger on the front", "larger →"),
      el(
        "button",
        {
          type: "button",
          id: "keep",
          title: "Compare each point that you open next with this one",
          onclick: () => {
            keepChoice(view, p);
            writeState();
            drawPoint(view);
            byId("keep").focus();
          },
        },
        "compare others with it",
      ),
    ),
  );
  const line = el(
    "p",
    { class: "muted point-name" },
    page.runs.length > 1 ? `${page.runs[p.run].name} · ` : "",
    el("code", {}, p.point),
  );
  if (view.knee && group === view.knee) line.append(" · the knee");
  if (view.answer?.answer === p) line.append(" · the answer to the question");
  if (group && !view.front.includes(group)) line.append(" · dominated");
  const alike = group ? alikeOf(view, group) : [];
  if (alike.length)
    line.append(
      ` · alike: ${alike.map((g) => `${g.method} at ${askedOf(g)}`).join(", ")} (same cost, no difference beyond the error)`,
    );
  if (group && group.members.length > 1) {
    line.append(" · seeds ");
    for (const member of group.members)
      line.append(
        el(
          "button",
          { type: "button", class: "seed", "aria-pressed": String(member === p), onclick: () => actions.choose(member) },
          String(member.seed),
        ),
      );
  }
  return el("div", {}, head, line);
}

/**
 * All that is measured of the point, with what belongs to some of it in small letters below.
 * @param {View} view
 */
function pointFacts(view, p, group) {
  const facts = el("dl", { class: "facts" });
  const fact = (term, value, note = "", within = false) =>
    facts.append(
      el(
        "div",
        { class: within ? "within" : "" },
        el("dt", {}, term),
        el("dd", {}, value, note ? el("small", {}, note) : null),
      ),
    );
  const { page } = view;
  const dense = view.dense[p.run];
  const seeds = group ? group.members.length : 1;
  const measure = measureOf(page, p.run);
  const { test, val, decimals } = measure;
  const notes = {
    macs: `${share(p.macs, p.macs_dense)} of dense`,
    params: `${share(p.params, p.params_dense)} of dense`,
    [test]:
      seeds > 1
        ? `${withSpread(group.mean[test], group.se[test], decimals)} over ${seeds} seeds`
        : imagesNote(page, p, test, "test"),
    [val]: seeds > 1 ? "" : imagesNote(page, p, val, "val"),
    train_seconds: [
      isTrained(page, p) ? null : "not trained after the cut",
      isTrained(page, p) && known(p.epochs) ? count(p.epochs, "epoch") : "",
      isTrained(page, p) && known(p.lr) ? `learning rate ${p.lr}` : "",
      p.teacher ? `teacher: ${p.teacher}` : "",
      p.device ?? "",
    ]
      .filter(Boolean)
      .join(", "),
  };
  for (const column of page.columns) {
    if (!known(p[column.name])) continue;
    const text = column.unit === "parameters" ? bare(column, p[column.name]) : show(column, p[column.name]);
    fact(capital(column.title), text, notes[column.name]);
    if (column.name === test && known(dense.test) && !isDense(p)) {
      const within = !apartFromDense(view, p);
      const note = `${dense.what}${within ? "; within the error" : ""}`;
      fact("Against dense", difference(measure, p[test] - dense.test), note, within);
    }
  }
  for (const [s, numbers] of Object.entries(p.bench)) {
    for (const [c, column] of page.timings.entries()) {
      if (!known(numbers[c])) continue;
      const base = LATENCIES.includes(column.name) ? page.bench_dense[`${p.run}|${s}`] : null;
      const faster = known(base) ? `, ${significant(base / numbers[c], 2)} × dense` : "";
      fact(capital(column.title), show(column, numbers[c]), `${page.settings[s]}${faster}`);
    }
  }
  for (const { column, of } of int8Columns(page)) {
    if (known(of(p))) fact(column.title, show(column, of(p)), column.name === "int8_model_bytes" ? p.int8.file : "");
  }
  return facts;
}

/**
 * The error of one seed's accuracy and where it comes from; empty where it is not known.
 * @param {Page} page
 */
function imagesNote(page, p, name, split) {
  const [error, images] = [errorOfOne(page, p, name), page.runs[p.run].images[split]];
  if (!known(error) || !known(images)) return "";
  return `± ${fixed(error, 1)} by ${count(images, "image")}`;
}

/**
 * What the open point is compared with: its name, structure, MACs and measure on test; null where there is nothing.
 * @param {View} view
 */
function comparedWith(view, p) {
  const chosen = chosenOther(view, p);
  if (chosen) return chosen;
  if (!p.layers) return null;
  const { page } = view;
  const measure = measureOf(page, p.run);
  if (state.compare === "dense") {
    const { test } = view.dense[p.run];
    // A plain smaller model has sizes of its own.
    const own = page.points.find((q) => q.run === p.run && isDense(q) && q.layers) ?? p;
    const shape = page.shapes[own.layers.shape];
    const structure = {
      shape: own.layers.shape,
      heads: shape.names.map((_, i) => Array(shape.heads[i]).fill(shape.head_dim[i])),
      units: shape.hidden,
      tokens: shape.tokens,
      last: null,
    };
    return { name: "the dense model", structure, macs: p.macs_dense, test, se: view.dense[p.run].group?.se[measure.test] };
  }
  const group = neighbourOf(view, p, state.compare === "larger" ? 1 : -1);
  if (!group || !group.best.layers) return null;
  return {
    name: `${group.method} at ${askedOf(group)}`,
    structure: group.best.layers,
    macs: group.best.macs,
    test: group.mean[measure.test],
    se: group.se[measure.test],
    point: group.best,
  };
}

/** @param {View} view */
function differenceCard(view, p, other) {
  const pick = el(
    "select",
    { id: "compare", "aria-label": "Compare with" },
    ...Object.entries(COMPARE).map(([value, text]) => el("option", { value, selected: value === state.compare }, text)),
    ...otherOptions(view, p),
  );
  pick.addEventListener("change", () => {
    state.compare = pick.value;
    writeState();
    drawPoint(view);
    byId("compare").focus();
  });
  const card = el("article", { id: "difference" }, el("h3", {}, "Compared with the ", pick));
  if (!other) {
    card.append(
      el(
        "p",
        { class: "muted" },
        { smaller: "No point of the front costs less.", larger: "No point of the front costs more." }[state.compare] ||
          "Nothing to compare with.",
      ),
    );
    return card;
  }
  const said = [];
  if (known(other.macs)) said.push(`${signed((100 * (other.macs - p.macs)) / p.macs_dense, 1)} % of dense MACs`);
  const measure = measureOf(view.page, p.run);
  const own = groupOf(view, p)?.mean[measure.test] ?? p[measure.test];
  const groups = [groupOf(view, p), other.point ? seedsOf(view.page, other.point) : view.dense[p.run].group];
  const itself = groups[0] && groups[0].best === groups[1]?.best;
  const spread = itself ? [] : [groups[0]?.se[measure.test], other.se];
  const se = spread.length && spread.every(known) ? ` (± ${fixed(Math.hypot(...spread), measure.decimals)})` : "";
  const [theirs, mine] = [groups[1]?.members.length ?? 1, groups[0]?.members.length ?? 1];
  const seeds = theirs === mine ? `means over ${mine} seeds` : `${count(theirs, "seed")} against ${mine}`;
  const means = Math.max(theirs, mine) > 1 ? ` (${seeds})` : "";
  if (known(other.test) && known(own))
    said.push(`${difference(measure, other.test - own)}${se} of test ${measure.title}${means}`);
  const go = other.point
    ? el("button", { type: "button", class: "link", onclick: () => actions.choose(other.point) }, other.name)
    : other.name;
  card.append(el("p", {}, go, said.length ? `: ${said.join(", ")}.` : "."));
  if (!other.structure || !p.layers) {
    card.append(el("p", { class: "muted" }, "What both keep in each layer cannot be compared: one structure is not known."));
    return card;
  }
  if (other.structure.shape !== p.layers.shape) {
    card.append(el("p", { class: "muted" }, "Its layers have other dense sizes, so they cannot be compared one by one."));
    return card;
  }
  card.append(differenceTable(view.page, p.layers, other.structure));
  return card;
}

/** @param {View} view */
function trainingCard(view, p) {
  return el(
    "article",
    { class: "wide", id: "training" },
    el(
      "div",
      { class: "section-head" },
      el("h3", {}, "Training of ", curvesChoice(view, p)),
      el(
        "span",
        { class: "downloads" },
        el("button", { type: "button", "data-figure": "training-figure", "data-format": "svg" }, "SVG"),
      ),
    ),
    el("div", { id: "training-figure", class: "figure small-figure" }),
  );
}

/** @param {View} view */
function drawTraining(view, p, group) {
  const node = byId("training-figure");
  const members = besideOf(view, p, group).filter((m) => m.curve);
  if (!members.length) {
    node.replaceChildren(el("p", { class: "muted" }, "No epochs are recorded for this point."));
    return;
  }
  if (!plotly()) return;
  const colours = theme();
  const measure = measureOf(view.page, p.run);
  const unit = measure.unit && ` ${measure.unit}`;
  const title = [`validation ${measure.title}`, measure.unit].filter(Boolean).join(", ");
  const traces = [];
  for (const m of [...members].sort((a, b) => Number(a === p) - Number(b === p))) {
    const own = m === p;
    const name = plain(curveName(view, m, p));
    const common = {
      type: "scatter",
      mode: "lines",
      x: m.curve.epoch,
      line: { color: seriesStyle(view.page, m.run, m.method).colour, width: own ? 2.5 : 1.25 },
      opacity: own ? 1 : 0.5,
      name,
    };
    traces.push({
      ...common,
      y: m.curve.val,
      hovertemplate: `${name}, epoch %{x}: %{y:.${measure.decimals}f}${unit}<extra></extra>`,
    });
    traces.push({
      ...common,
      y: m.curve.loss,
      xaxis: "x2",
      yaxis: "y2",
      hovertemplate: `${name}, epoch %{x}: %{y:.4f}${measure.unit === "%" ? " nats" : ""}<extra></extra>`,
    });
  }
  const level = view.dense[p.run].val;
  const compare = known(level) && !isDense(p);
  const shapes = compare
    ? [
        {
          type: "line",
          xref: "x domain",
          yref: "y",
          x0: 0,
          x1: 1,
          y0: level,
          y1: level,
          line: { color: colours.muted, width: 1, dash: "dot" },
        },
      ]
    : [];
  describeFigure("training-figure", () => ({
    title: `training of ${p.method} at ${askedOf(p)}`,
    legend: members.map((m) => ({
      name: curveName(view, m, p),
      colour: seriesStyle(view.page, m.run, m.method).colour,
    })),
  }));
  drawPanels(
    "training-figure",
    traces,
    [compare ? `${title} (dots: dense)` : title, lossTitle(measure)],
    node.clientWidth < 560,
    colours,
    "epoch",
    { shapes },
  );
}

// Without labels there is no cross entropy, whose unit is the nat.
const lossTitle = (measure) => (measure.unit === "%" ? "training loss, nats" : "training loss");

/** @param {Page} page */
function loadCard(page, p) {
  const card = el("article", { id: "load", class: "wide" }, el("h3", {}, "Load it"));
  if (!p.model_path) {
    card.append(el("p", { class: "muted" }, "No model was saved for this point."));
    return card;
  }
  const { uri } = page.runs[p.run];
  if (uri === null) {
    card.append(el("p", { class: "muted" }, "This page was made from a table of results, so the model's folder is not known."));
    return card;
  }
  const [base, options] = uri.split(/(?=\?)/); // of a store's URI; a local path has no options
  const path = `${base}/${p.model_path}${options || ""}`;
  const shell = `'${path.replace(/'/g, `'\\''`)}'`;
  const code = (text) => el("div", { class: "code" }, el("pre", {}, text), copyButton(text));
  const downloads = downloadsAt(p.run, p.point);
  if (downloads) card.append(el("p", {}, el("a", { href: downloads }, "Download it"), ": timm folder, ONNX or torch.export."));
  card.append(
    code(`from slimsweep import load\nmodel = load(${JSON.stringify(path)})`),
    code(`slimsweep export ${shell} --format onnx`),
    el("p", { class: "muted small" }, "The folder is ", el("code", {}, path), ", with safetensors and JSON."),
  );
  return card;
}
