// What the reader has chosen, kept in the address: it survives the page's own refresh and can be sent as a link.

/** @import { Page } from "./types.js" */

/** @type {Record<string, any>} */
export const state = {
  x: "", // keys of metrics, or "" for what suits the page
  y: "",
  xscale: "", // "linear", "log", or "" for what suits the numbers
  yscale: "",
  dominated: true,
  seeds: true,
  colour: "", // "method", "run", or "" for what suits the page
  data: 0, // index of the data set shown, or "all"
  whole: false, // whether the y axis covers models that are far from the front too
  off: new Set(), // methods ("m:NAME") and runs ("r:NAME") switched off
  run: null, // the open point's run and name: names stay the same when the page is written again, places may not
  point: null,
  compare: "smaller",
  against: "", // the method that others are compared with, or "" for the search
  question: "",
  fits: false,
  filter: "",
  sort: "", // "COLUMN:up" or "COLUMN:down", or "" for the best first
  hide: "", // columns of the table that are switched off, with commas between
  curves: "seeds", // whose trainings are beside the open point's: "seeds", "budgets" or "methods"
};

const DEFAULTS = { ...state };

export function readState() {
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (!(name in state)) continue;
    if (name === "off") state.off = new Set(text.split(",").filter(Boolean).map(decodeURIComponent));
    else if (typeof DEFAULTS[name] === "boolean") state[name] = text === "1";
    else if (name === "data") state.data = text === "all" ? "all" : Number(text) || 0;
    else state[name] = text;
  }
}

export function writeState() {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name === "off") {
      if (value.size) parameters.set(name, [...value].map(encodeURIComponent).join(","));
    } else if (value !== DEFAULTS[name] && value !== null)
      parameters.set(name, value === true ? "1" : value === false ? "0" : value);
  }
  const text = parameters.toString();
  if (text !== location.hash.slice(1)) history.replaceState(null, "", text ? `#${text}` : "#");
}

/**
 * Whether points of a run's data set are shown.
 * @param {Page} page
 */
export const inData = (page, run) => state.data === "all" || page.runs[run].dataset === state.data;
