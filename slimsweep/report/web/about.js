// How the runs were made: configuration, command, versions, devices and time, folded away.

import { byId, copyButton, el } from "./dom.js";
import { DASH, duration, known, significant } from "./format.js";

/** @import { Page, Run } from "./types.js" */

const STAGES = {
  dense: "Training of the dense model",
  search: "Search",
  retrain: "Retraining of all points",
  repair: "Axes and repair",
};

/** @param {Page} page */
export function drawAbout(page) {
  const section = byId("about");
  const parts = page.runs.flatMap((run) => (run.about ? aboutRun(run, page.runs.length > 1) : []));
  section.hidden = !parts.length;
  section.replaceChildren(el("h2", { id: "about-title" }, "How it was made"), ...settingsOf(page), ...parts);
}

/**
 * In which settings the runs of a comparison differ.
 * @param {Page} page
 */
function settingsOf({ runs, differing }) {
  if (runs.filter(({ about }) => about?.config).length < 2) return [];
  if (!differing.length) return [el("p", { class: "muted" }, "All settings of these runs are the same.")];
  const head = ["Setting", ...runs.map(({ name }) => name)].map((title) => el("th", { scope: "col", class: "text" }, title));
  const rows = differing.map(({ field, values }) => {
    const cells = values.map((value) => el("td", { class: "text" }, value ?? DASH));
    return el("tr", {}, el("th", { scope: "row" }, el("code", {}, field)), ...cells);
  });
  const table = el("table", { class: "settings" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  return [
    el("h3", { id: "settings-title" }, "Settings that differ"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "settings-title" }, table),
  ];
}

/** @param {Run} run */
function aboutRun({ name, about }, several) {
  const rows = [];
  const row = (term, ...value) => rows.push(el("tr", {}, el("th", { scope: "row" }, term), el("td", {}, ...value)));
  const { seconds, versions, devices, config, command, mean_retraining: mean } = about;
  for (const [stage, took] of Object.entries(seconds)) {
    const cost = stage === "search" && known(mean) && mean > 0 ? `, as long as ${significant(took / mean, 2)} retrainings` : "";
    row(STAGES[stage], `${duration(took)}${cost}`);
  }
  const total = Object.values(seconds).reduce((a, b) => a + b, 0);
  if (total) row("All recorded work", `${duration(total)}, added up: what ran side by side took less time by the clock`);
  if (devices) row("Device", devices);
  if (Object.keys(versions).length)
    row(
      "Versions",
      Object.entries(versions)
        .map(([of, version]) => `${of} ${version}`)
        .join(" · "),
    );
  if (!rows.length && !config) return [];
  const body = [el("table", { class: "plain" }, el("tbody", {}, ...rows))];
  if (command)
    body.push(
      el("p", { class: "muted small" }, "The same settings again; it goes on where the run's folder is still there:"),
      el("div", { class: "code" }, el("pre", {}, command), copyButton(command)),
    );
  if (config)
    body.push(
      el(
        "details",
        {},
        el("summary", {}, "Whole configuration"),
        el("pre", {}, config),
        copyButton(config, "Copy configuration"),
      ),
    );
  const what = ["time", "device", "versions", ...(config ? ["command", "configuration"] : [])].join(", ");
  return [el("details", { class: "about-run" }, el("summary", {}, several ? `${name}: ${what}` : what), ...body)];
}
