// Choices above the figure: data set, axes, switches, and which methods and runs are shown.

import { actions } from "./actions.js";
import { byId, el, find } from "./dom.js";
import { clicked, isAlone, showOnly } from "./only.js";
import { inData, state } from "./state.js";
import { colourBy, lineIcon, markerIcon, runStyle, shade, theme } from "./styles.js";

/** @import { View } from "./types.js" */

/** @param {View} view */
export function drawControls(view) {
  const { page } = view;
  const select = (label, id, options, value, change) => {
    const node = el(
      "select",
      { id },
      ...options.map(([v, text]) => el("option", { value: v, selected: String(v) === String(value) }, text)),
    );
    node.addEventListener("change", () => {
      change(node.value);
      actions.update();
      byId(id).focus();
    });
    return el("label", {}, label, " ", node);
  };
  const check = (label, id, value, change) => {
    const node = el("input", { type: "checkbox", id, checked: value });
    node.addEventListener("change", () => {
      change(node.checked);
      actions.update();
      byId(id).focus();
    });
    return el("label", { class: "check" }, node, label);
  };
  const controls = [];
  if (page.datasets.length > 1)
    controls.push(
      select(
        "Data set",
        "data",
        [...page.datasets.map((d, i) => [i, d.name]), ["all", "all on one axis"]],
        state.data,
        (v) => (state.data = v === "all" ? "all" : Number(v)),
      ),
    );
  if (view.metrics.y.length > 1)
    controls.push(
      select(
        "Show",
        "y",
        view.metrics.y.map((m) => [m.key, m.label]),
        view.y.error && !view.metrics.y.includes(view.y) ? view.y.error.of : view.y.key,
        (v) => ((state.y = v), (state.yscale = "")),
      ),
    );
  if (view.metrics.x.length > 1)
    controls.push(
      select(
        "against",
        "x",
        view.metrics.x.map((m) => [m.key, m.label]),
        view.x.key,
        (v) => ((state.x = v), (state.xscale = "")),
      ),
    );
  if (page.runs.length > 1)
    controls.push(
      select(
        "Colours",
        "colour",
        [
          ["run", "one per run"],
          ["method", "one per method"],
        ],
        colourBy(page),
        (v) => (state.colour = v),
      ),
    );
  controls.push(
    check("log x", "logx", view.logx, (v) => (state.xscale = v ? "log" : "linear")),
    check(view.y.unit === "%" ? "log error" : "log y", "logy", view.logy, (v) => (state.yscale = v ? "log" : "linear")),
  );
  controls.push(check("dominated points", "dominated", state.dominated, (v) => (state.dominated = v)));
  if (page.points.some((p) => p.seed !== page.points[0].seed))
    controls.push(check("single seeds", "seeds", state.seeds, (v) => (state.seeds = v)));
  byId("controls").replaceChildren(...(page.points.length ? controls : []));
  byId("question").hidden = !page.points.length;
  find("#front .downloads").hidden = !view.groups.length;
}

/** @param {View} view */
export function drawChips(view) {
  const { page } = view;
  const kinds = { m: page.methods.map((m) => `m:${m}`), r: page.runs.map((run) => `r:${run.name}`) };
  const toggle = (key, icon, text) => {
    const kind = kinds[key[0]];
    const changed = (selector) => {
      actions.update();
      find(`#chips [${selector}="${CSS.escape(key)}"]`)?.focus();
    };
    const button = el(
      "button",
      {
        type: "button",
        "aria-pressed": String(!state.off.has(key)),
        "data-key": key,
        title: `Show or hide ${text}; a double click shows it alone`,
      },
      icon,
      text,
    );
    button.addEventListener("click", (event) => {
      // A key that is held down, or pressed twice, is no double click.
      if (event.detail === 0) state.off.delete(key) || state.off.add(key);
      else clicked(state.off, key, kind, event.timeStamp);
      changed("data-key");
    });
    const alone = isAlone(state.off, key, kind);
    const only = el(
      "button",
      {
        type: "button",
        class: "only",
        "aria-pressed": String(alone),
        "aria-label": alone ? "Show all again" : `Show ${text} alone`,
        "data-only": key,
      },
      alone ? "all" : "only",
    );
    only.addEventListener("click", () => {
      showOnly(state.off, key, kind);
      changed("data-only");
    });
    return el("span", { class: "chip" }, button, only);
  };
  const inSet = page.points.filter((p) => p.status === "ok" && inData(page, p.run));
  const methods = page.methods.filter((m) => inSet.some((p) => p.method === m));
  const chips = [];
  const ink = theme().muted;
  if (methods.length > 1)
    for (const m of methods)
      chips.push(toggle(`m:${m}`, markerIcon(page, m, colourBy(page) === "method" ? shade(page.looks[m]) : ink), m));
  const runs = page.runs.map((_, r) => r).filter((r) => page.runs[r].points && inData(page, r));
  if (runs.length > 1) {
    for (const r of runs) {
      const { colour, dash } = runStyle(page, r);
      const byRun = colourBy(page) === "run";
      const line = lineIcon(22, byRun ? colour : ink, byRun ? dash : "solid");
      chips.push(toggle(`r:${page.runs[r].name}`, line, page.runs[r].name));
    }
  }
  byId("chips").replaceChildren(...chips);
}

/** @param {View} view */
export function drawMixing(view) {
  const { page } = view;
  const node = byId("mixing");
  node.hidden = page.datasets.length < 2;
  if (node.hidden) return;
  const names = page.datasets.map((d) => d.name).join(", ");
  node.replaceChildren(
    view.mixed
      ? `These runs were trained on ${page.datasets.length} data sets (${names}) and share this axis because you asked for it: accuracies on different data sets do not compare. Each data set has its own front.`
      : `These runs were trained on ${page.datasets.length} data sets (${names}), and accuracies on different data sets do not compare. Shown: ${page.datasets[state.data].name}.`,
  );
}
