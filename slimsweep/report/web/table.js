// The table of points: sorts, filters, copies, downloads; its rows and the figure's points open the same thing.

import { actions } from "./actions.js";
import { byId, copyText, el, find, saveFile } from "./dom.js";
import { bare, capital, count, DASH, known, share, show, signed } from "./format.js";
import { int8Columns } from "./int8.js";
import { budgetOf, isDense, isTrained, LATENCIES, measureOf, sharesOf } from "./metrics.js";
import { state, writeState } from "./state.js";
import { markerIcon, seriesStyle } from "./styles.js";
import { apartFromDense } from "./uncertainty.js";

/** @import { Metric, View } from "./types.js" */

const FIRST_ROWS = 250; // drawn at once, or as many as reach the open point and the answer; the rest on demand

// A table's column: its key, title, value of a point (for sorting) and text.
const textColumn = (key, title, of) => ({ key, title, of, show: of, text: true });
const numberColumn = (key, title, of, text) => ({ key, title, of, show: text });

// A column or timing as Python describes it.
const measured = (metric, of) =>
  numberColumn(metric.key ?? metric.name, capital(metric.title), of, (p) =>
    metric.unit === metric.title ? bare(metric, of(p)) : show(metric, of(p)),
  );

/**
 * The title of a timing's column: of latencies in several settings with the device.
 * @param {Metric} metric
 * @param {Metric[]} timed
 */
function titleIn(metric, timed) {
  const others = timed.filter((m) => m.name === metric.name && m !== metric);
  if (metric.name !== LATENCIES[0] || !others.length) return metric.title;
  const deviceOf = (/** @type {Metric} */ { setting }) =>
    setting
      .slice(setting.indexOf(": ") + 1)
      .split(",")[0]
      .trim();
  const device = deviceOf(metric);
  return `${metric.title}, ${others.some((m) => deviceOf(m) === device) ? metric.setting : device}`;
}

/** @param {View} view */
function columnsOf(view) {
  const { page } = view;
  const several = page.runs.length > 1;
  const delta = (p) => {
    const [own, dense] = [p[measureOf(page, p.run).test], view.dense[p.run].test];
    return known(own) && known(dense) ? own - dense : null;
  };
  const reported = Object.values(page.measures).map((m) => m.test);
  const has = (of) => page.points.some((p) => known(of(p)));
  const columns = [];
  if (several) columns.push(textColumn("run", "Run", (p) => page.runs[p.run].name));
  if (several && page.datasets.length > 1) columns.push(textColumn("data", "Data", (p) => page.runs[p.run].data));
  columns.push(
    { ...textColumn("method", "Method", (p) => p.method), icon: true },
    numberColumn("budget", "Budget", (p) => p.budget, budgetOf),
  );
  if (page.points.some((p) => p.shares)) columns.push(textColumn("shares", "Keeps", sharesOf));
  columns.push(
    numberColumn(
      "seed",
      "Seed",
      (p) => p.seed,
      (p) => (known(p.seed) ? String(p.seed) : DASH),
    ),
  );
  for (const column of page.columns) {
    const of = (p) => p[column.name];
    if (has(of)) columns.push(measured(column, of));
    if (column.name === reported[reported.length - 1])
      columns.push({
        ...numberColumn("delta", "vs dense", delta, (p) => signed(delta(p), measureOf(page, p.run).decimals)),
        within: (p) => known(delta(p)) && !isDense(p) && !apartFromDense(view, p),
        hint: "the difference from the dense model; grey where it is within the error",
      });
  }
  const timed = view.metrics.x.filter((m) => m.setting);
  for (const metric of timed)
    columns.push({ ...measured({ ...metric, title: titleIn(metric, timed) }, metric.of), hint: metric.label });
  for (const { column, of } of int8Columns(page)) columns.push(measured(column, of));
  columns.push(textColumn("point", "Point", (p) => p.point));
  return columns;
}

/** @param {View} view */
function tableRows(view, columns) {
  const words = state.filter
    .toLowerCase()
    .replace(/\bseed[ =:]*(\d+)/g, "seed=$1;") // a number alone would match budgets and hashes too
    .split(/\s+/)
    .filter(Boolean);
  let rows = view.shown.filter((p) => p.status === "ok");
  if (words.length) {
    rows = rows.filter((p) => {
      const text = [
        p.point,
        p.method,
        `seed=${p.seed};`,
        share(p.budget, 1).replace(" ", ""),
        p.unit,
        sharesOf(p),
        p.device || "",
        view.page.runs[p.run].name,
        view.page.runs[p.run].model,
        view.page.runs[p.run].data,
        view.fronted.has(p) ? "front" : "dominated",
        isTrained(view.page, p) ? "" : "untrained",
      ]
        .join(" ")
        .toLowerCase();
      return words.every((w) => text.includes(w));
    });
  }
  if (state.fits && view.answer?.fits) rows = rows.filter((p) => view.answer.fits.has(p));
  const [key, direction] = sortOf(view, columns).split(":");
  const column = columns.find((c) => c.key === key);
  if (!column) return rows;
  const sign = direction === "down" ? -1 : 1;
  const value = new Map(rows.map((p) => [p, column.of(p)]));
  return [...rows].sort((a, b) => {
    const [u, v] = [value.get(a), value.get(b)];
    if (column.text) return sign * String(u).localeCompare(String(v), "en", { numeric: true }) || a.i - b.i;
    if (!known(u) || !known(v)) return known(u) ? -1 : known(v) ? 1 : a.i - b.i; // the unknown last, either way
    return sign * (u - v) || a.i - b.i;
  });
}

let allRows = false;

const classOf = (column) => [column.text ? "text" : "", column.key === "method" ? "named" : ""].filter(Boolean).join(" ");

/**
 * What rows are sorted by: the reader's choice, else the best first by what the figure shows. Data sets do not compare: where
 * several are shown, the rows stay in the order of their runs.
 * @param {View} view
 */
function sortOf(view, columns) {
  if (state.sort) return state.sort;
  const key = view.y.error ? view.y.error.of : view.y.key;
  if (view.mixed || !columns.some((c) => c.key === key)) return "";
  return `${key}:${view.y.more || view.y.error ? "down" : "up"}`;
}

/** A box per column that switches it on or off. */
function drawColumnChoice(columns) {
  const hidden = new Set(state.hide.split(",").filter(Boolean));
  byId("columns").replaceChildren(
    ...columns
      .filter((c) => c.key !== "method")
      .map((c) => {
        const box = el("input", { type: "checkbox", "data-column": c.key, checked: !hidden.has(c.key) });
        box.addEventListener("change", () => {
          if (!hidden.delete(c.key)) hidden.add(c.key);
          state.hide = [...hidden].join(",");
          writeState();
          drawTable(actions.view());
          find(`#columns [data-column="${CSS.escape(c.key)}"]`)?.focus();
        });
        return el("label", {}, box, c.hint ? capital(c.hint) : c.title);
      }),
  );
}

/**
 * @param {View} view
 * @param {boolean} [whole] every row, as on paper
 */
export function drawTable(view, whole = false) {
  const section = byId("table");
  section.hidden = !view.page.points.length;
  if (section.hidden) return;
  const all = columnsOf(view);
  if (!byId("filter")) buildTableFrame(section);
  drawColumnChoice(all);
  const hidden = new Set(state.hide.split(","));
  const columns = all.filter((c) => c.key === "method" || !hidden.has(c.key));
  const rows = tableRows(view, all);
  view.rows = rows;
  byId("fits").disabled = !view.answer?.fits;
  byId("fits").checked = state.fits && Boolean(view.answer?.fits);
  const total = view.shown.filter((p) => p.status === "ok").length;
  byId("row-count").textContent =
    rows.length === total ? count(total, "point") : `${rows.length.toLocaleString("en")} of ${count(total, "point")}`;

  const [key, direction] = sortOf(view, all).split(":");
  const head = el(
    "tr",
    {},
    ...columns.map((c) => {
      const sorted = c.key === key ? (direction === "down" ? "descending" : "ascending") : "none";
      const arrow = sorted === "none" ? "" : sorted === "ascending" ? " ▲" : " ▼";
      return el(
        "th",
        { scope: "col", "aria-sort": sorted, class: `${classOf(c)}${c.title.length > 24 ? " long" : ""}` },
        el(
          "button",
          { type: "button", "data-sort": c.key, title: `Sort by ${c.hint || c.title}` },
          c.title,
          el("span", { "aria-hidden": "true" }, arrow),
        ),
      );
    }),
  );
  const body = el("tbody");
  const drawn =
    allRows || whole
      ? rows.length
      : Math.max(FIRST_ROWS, rows.indexOf(view.selected) + 1, rows.indexOf(view.answer?.answer) + 1);
  for (const p of rows.slice(0, drawn)) {
    const row = el("tr", {
      tabindex: "0",
      "data-point": p.i,
      "aria-selected": String(p === view.selected),
      class: rowClass(view, p),
    });
    for (const c of columns) {
      const cell = el("td", { class: [classOf(c), c.within?.(p) ? "within" : ""].filter(Boolean).join(" ") }, c.show(p));
      if (c.icon) cell.prepend(markerIcon(view.page, p.method, seriesStyle(view.page, p.run, p.method).colour), " ");
      row.append(cell);
    }
    body.append(row);
  }
  byId("points").replaceChildren(el("thead", {}, head), body);
  markRow(view);
  byId("more").hidden = rows.length <= drawn;
  byId("more").textContent = `Show all ${rows.length.toLocaleString("en")} points`;
}

/** @param {View} view */
function rowClass(view, p) {
  const classes = [];
  if (!view.fronted.has(p)) classes.push("dominated");
  if (view.answer?.fits?.has(p)) classes.push("fits");
  if (view.answer?.answer === p) classes.push("answer");
  return classes.join(" ");
}

/**
 * Which row is open changes often: only that is changed.
 * @param {View} view
 */
export function markRow(view) {
  for (const row of document.querySelectorAll("#points tr[aria-selected=true]")) row.setAttribute("aria-selected", "false");
  const row = view.selected && find(`#points tr[data-point="${view.selected.i}"]`);
  if (!row) return view.rows.includes(view.selected) ? drawTable(view) : undefined;
  row.setAttribute("aria-selected", "true");
  if (!state.point) return undefined; // nobody chose it: the table begins with the best
  // Into sight inside the table, without moving the page.
  const box = row.closest(".tall");
  const [from, to] = [row.offsetTop - 2 * row.offsetHeight, row.offsetTop + row.offsetHeight];
  if (from < box.scrollTop) box.scrollTop = from;
  else if (to > box.scrollTop + box.clientHeight) box.scrollTop = to - box.clientHeight;
}

function buildTableFrame(section) {
  const filter = el("input", {
    id: "filter",
    type: "search",
    placeholder: "Filter: searched, seed 0, front, …",
    "aria-label": "Filter the table",
    value: state.filter,
  });
  filter.addEventListener("input", () => {
    state.filter = filter.value;
    writeState();
    drawTable(actions.view());
  });
  const fits = el("input", { id: "fits", type: "checkbox" });
  fits.addEventListener("change", () => {
    state.fits = fits.checked;
    writeState();
    drawTable(actions.view());
  });
  const copy = el("button", { type: "button", id: "copy-table" }, "Copy");
  copy.addEventListener("click", () => copyText(asText(actions.view(), "\t"), copy));
  const table = el("table", { id: "points", class: "points" });
  table.addEventListener("click", (event) => {
    const sort = event.target.closest("button[data-sort]");
    if (sort) {
      const [key, direction] = state.sort.split(":");
      // Once up, once down, then the best first again.
      state.sort = key !== sort.dataset.sort ? `${sort.dataset.sort}:up` : direction === "up" ? `${key}:down` : "";
      writeState();
      drawTable(actions.view());
      find(`#points button[data-sort="${CSS.escape(sort.dataset.sort)}"]`).focus();
      return;
    }
    const row = event.target.closest("tr[data-point]");
    if (row && !String(getSelection())) openFromTable(row);
  });
  table.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr[data-point]");
    if (!row || event.target !== row) return;
    if (event.key === "Enter" || event.key === " ") openFromTable(row);
    else if (event.key === "ArrowDown") row.nextElementSibling?.focus();
    else if (event.key === "ArrowUp") row.previousElementSibling?.focus();
    else return;
    event.preventDefault();
  });
  const more = el("button", { type: "button", id: "more", hidden: true });
  more.addEventListener("click", () => {
    allRows = true;
    drawTable(actions.view());
  });
  section.replaceChildren(
    el(
      "div",
      { class: "section-head" },
      el("h2", { id: "table-title" }, "Points"),
      el(
        "span",
        { class: "downloads" },
        copy,
        el(
          "button",
          { type: "button", id: "csv", onclick: () => saveFile("points.csv", asText(actions.view(), ","), "text/csv") },
          "CSV",
        ),
      ),
    ),
    el(
      "div",
      { class: "controls" },
      filter,
      el("label", { class: "check" }, fits, "only what answers the question"),
      el("span", { id: "row-count", class: "muted", role: "status" }),
    ),
    el("details", { class: "columns" }, el("summary", {}, "Columns"), el("div", { id: "columns" })),
    el("div", { class: "scroll tall", tabindex: "-1" }, table),
    more,
  );
}

function openFromTable(row) {
  actions.choose(actions.view().page.points[Number(row.dataset.point)]);
  const section = byId("point");
  section.scrollIntoView({
    block: "start",
    behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
  });
}

const NOT_COPIED = new Set(["i", "run", "structure", "status", "error", "curve", "layers", "bench"]);

/**
 * The rows that are shown, in their order, with plain numbers in base units: MACs, bytes, percent, seconds.
 * @param {View} view
 */
function asText(view, separator) {
  const { page } = view;
  // All that is known of a point, less what is the same for all rows here.
  const own = ["run", "model", "data", ...Object.keys(page.points[0] ?? {}).filter((key) => !NOT_COPIED.has(key))];
  const timed = view.metrics.x.filter((m) => m.setting);
  const value = (p, key) => (["run", "model", "data"].includes(key) ? page.runs[p.run][key === "run" ? "name" : key] : p[key]);
  const quote = (v) => {
    if (v === null || v === undefined) return "";
    let text = String(v);
    // A spreadsheet would run text that begins like a formula.
    if (typeof v === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    if (separator === "\t") return text.replace(/[\t\r\n]+/g, " ");
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  const lines = [[...own, "on_front", ...timed.map((m) => m.label)].map(quote)];
  for (const p of view.rows)
    lines.push([...own.map((key) => value(p, key)), view.fronted.has(p) ? 1 : 0, ...timed.map((m) => m.of(p))].map(quote));
  return lines.map((cells) => cells.join(separator)).join("\r\n") + "\r\n";
}
