// Colours, markers and dashes. How each method looks is sent by Python, from its table of methods.

import { svg } from "./dom.js";
import { state } from "./state.js";

/** @import { Page } from "./types.js" */

export const darkMode = matchMedia("(prefers-color-scheme: dark)");
export const touch = matchMedia("(pointer: coarse)");

// Dashes of plotly's lines, and the same in SVG.
export const SVG_DASHES = { solid: "", dash: "5 3", dot: "2 2.5", longdash: "8 3" };
const DASHES = ["solid", "dash", "dot", "longdash"];

/** Whether colours are for a dark page: paper is light. */
export const isDark = () => darkMode.matches && !document.documentElement.classList.contains("paper");

/** Of a light and a dark shade, the one for the system's theme. */
export const shade = (shades) => (isDark() ? shades.dark : shades.light);

/** The theme's colours, as the style sheet has them. */
export function theme() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return {
    ink: get("--ink"),
    muted: get("--muted"),
    line: get("--line"),
    back: get("--back"),
    accent: get("--accent"),
    fit: get("--fit"),
    font: get("--font"),
  };
}

/**
 * Whether colours tell methods or runs apart: methods, where one data set is shown and has several of them.
 * @param {Page} page
 */
export const colourBy = (page) => state.colour || (page.runs.length === 1 || severalMethods(page) ? "method" : "run");

/** @type {WeakMap<Page, Map<any, boolean>>} */
const several = new WeakMap(); // by the data set that is shown

/** @param {Page} page */
function severalMethods(page) {
  const found = several.get(page) ?? new Map();
  several.set(page, found);
  if (!found.has(state.data)) {
    const here = page.points.filter((p) => page.runs[p.run].dataset === state.data || page.datasets.length === 1);
    found.set(state.data, new Set(here.map((p) => p.method).filter((m) => m !== "dense")).size > 1);
  }
  return found.get(state.data);
}

/**
 * Colour, symbol and dash of a series: one method of one run.
 * @param {Page} page
 */
export function seriesStyle(page, run, method) {
  const look = page.looks[method];
  if (colourBy(page) === "method") {
    // Runs on one data set are told apart by their lines.
    const own =
      page.runs.length > 1 ? DASHES[page.datasets[page.runs[run].dataset].runs.indexOf(run) % DASHES.length] : "solid";
    const dash = page.untrained.includes(method) ? "dot" : look.hollow ? "dash" : own;
    return { colour: shade(look), symbol: look.symbol, dash };
  }
  return { ...runStyle(page, run), symbol: look.symbol };
}

/**
 * Colour and dash of a run, where colours tell runs apart.
 * @param {Page} page
 */
export function runStyle(page, run) {
  const { run_colours: colours } = page;
  return { colour: shade(colours[run % colours.length]), dash: DASHES[Math.floor(run / colours.length) % DASHES.length] };
}

// Plotly's markers, as paths in a square of 16.
const MARKERS = {
  circle: "M8 3a5 5 0 1 0 .01 0z",
  diamond: "M8 1.5L14.5 8 8 14.5 1.5 8z",
  square: "M3.5 3.5h9v9h-9z",
  "triangle-up": "M8 2.5l6 10.5H2z",
  "triangle-down": "M8 13.5L2 3h12z",
  cross: "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z",
  x: "M8 5.2L11.2 2 14 4.8 10.8 8l3.2 3.2-2.8 2.8L8 10.8 4.8 14 2 11.2 5.2 8 2 4.8 4.8 2z",
  pentagon: "M8 2l6 4.4-2.3 7H4.3L2 6.4z",
  star: "M8 1l2 5h5l-4 3.4 1.5 5.1L8 11.4l-4.5 3.1L5 9.4 1 6h5z",
  hexagon: "M8 1.8l5.4 3.1v6.2L8 14.2l-5.4-3.1V4.9z",
  hourglass: "M3 2h10L8 8l5 6H3l5-6z",
};

/**
 * A method's marker as it is in the figure, for chips and tables.
 * @param {Page} page
 */
export function markerIcon(page, method, colour) {
  const { symbol, hollow } = page.looks[method];
  const d = MARKERS[symbol.replace("-open", "")] ?? MARKERS.circle;
  return svg(
    "svg",
    { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true", class: "marker" },
    svg("path", { d, ...(hollow ? { fill: "none", stroke: colour, "stroke-width": 2 } : { fill: colour }) }),
  );
}

/** A piece of a line as it is in the figure. */
export const lineIcon = (width, colour, dash) =>
  svg(
    "svg",
    { viewBox: `0 0 ${width} 8`, width, height: 8, "aria-hidden": "true" },
    svg("path", { d: `M0 4h${width}`, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": SVG_DASHES[dash] }),
  );
