// @ts-check
// Numbers as text.

/** @import { Column, Measure } from "./types.js" */

export const DASH = "–"; // what is not known

/**
 * @param {unknown} value
 * @returns {value is number}
 */
export const known = (value) => typeof value === "number" && Number.isFinite(value);

/**
 * Plotly reads a little HTML (and links) in its labels: this shows text as it is.
 * @param {unknown} text
 */
export const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** @type {[number, string][]} */
const PREFIXES = [
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
  [1, ""],
];

/**
 * The size and the letter of a number's metric prefix.
 * @param {number} value
 * @returns {[number, string]}
 */
export const prefixOf = (value) => PREFIXES.find(([size]) => Math.abs(value) >= size) ?? [1, ""];

/**
 * The size and the letter of the prefix that numbers of a unit are shown with: no one says kMACs.
 * @param {number} value
 * @param {string} unit
 * @returns {[number, string]}
 */
export const prefixFor = (value, unit) => (unit === "MACs" && Math.abs(value) < 1e6 ? [1e6, "M"] : prefixOf(value));

/** @param {string} text */
const minus = (text) => text.replace("-", "\u2212");

/**
 * @param {number} value
 * @param {number} [digits] that are significant
 */
export function significant(value, digits = 3) {
  if (value === 0) return "0";
  const whole = Math.floor(Math.log10(Math.abs(value))) + 1;
  return minus(value.toFixed(Math.max(0, digits - whole)));
}

/**
 * With a metric prefix: 1.74 MMACs, 5.7 M parameters.
 * @param {number | null | undefined} value
 * @param {string} unit
 * @param {number} [digits] that are significant
 */
export function scaled(value, unit, digits = 3) {
  if (!known(value)) return DASH;
  const [size, prefix] = prefixFor(value, unit);
  return `${significant(value / size, digits)} ${prefix}${unit === "parameters" ? `${prefix ? " " : ""}${unit}` : unit}`;
}

/**
 * @param {number | null | undefined} value
 * @param {number} [digits] after the point
 */
export const fixed = (value, digits = 2) => (known(value) ? minus(value.toFixed(digits)) : DASH);

/**
 * With its sign.
 * @param {number | null | undefined} value
 * @param {number} [digits] after the point
 */
export const signed = (value, digits = 2) => (known(value) ? (value > 0 ? "+" : "") + fixed(value, digits) : DASH);

/**
 * @param {number | null | undefined} value in percent
 * @param {number} [digits] after the point
 */
export const percent = (value, digits = 2) => (known(value) ? `${fixed(value, digits)} %` : DASH);

/**
 * A difference of two values of what models are judged by: "+0.40 points", "-0.0021".
 * @param {Pick<Measure, "decimals" | "points">} measure
 * @param {number | null | undefined} value
 */
export const difference = ({ decimals, points }, value) => (known(value) ? `${signed(value, decimals)}${points}` : DASH);

/**
 * A part of a whole in whole percent.
 * @param {number | null | undefined} part
 * @param {number | null | undefined} whole
 */
export const share = (part, whole) => (known(part) && whole ? `${Math.round((100 * part) / whole)} %` : DASH);

/**
 * @param {number} number
 * @param {string} noun in the singular
 */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/**
 * A mean, and its standard error where it has one.
 * @param {number | null | undefined} mean
 * @param {number | null | undefined} se
 * @param {number} [digits] after the point
 */
export const withSpread = (mean, se, digits = 2) =>
  known(se) ? `${fixed(mean, digits)} ± ${fixed(se, digits)}` : fixed(mean, digits);

/**
 * A mean of what models are judged by, with its standard error and its unit.
 * @param {Pick<Measure, "unit" | "decimals">} measure
 * @param {number | null | undefined} mean
 * @param {number | null | undefined} se
 */
export const showSpread = ({ unit, decimals }, mean, se) => withSpread(mean, se, decimals) + (unit && ` ${unit}`);

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 120) return `${significant(seconds, 2)} s`;
  if (seconds < 7200) return `${significant(seconds / 60, 2)} min`;
  return `${significant(seconds / 3600, 3)} h`;
}

/** @param {string} text */
export const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

// Units that take a metric prefix.
const PREFIXED = new Set(["MACs", "parameters", "B"]);

/**
 * Whether numbers of a unit are shown with a metric prefix.
 * @param {string} unit
 */
export const takesPrefix = (unit) => PREFIXED.has(unit);

/**
 * A number of a column as text, below a title that says its unit.
 * @param {Pick<Column, "unit" | "decimals">} column
 * @param {number | null | undefined} value
 */
export const bare = (column, value) => show(column, value).replace(column.unit, "").trim();

/**
 * A number of a column as text.
 * @param {Pick<Column, "unit" | "decimals">} column
 * @param {number | null | undefined} value
 */
export function show({ unit, decimals }, value) {
  if (!known(value)) return DASH;
  if (takesPrefix(unit)) return scaled(value, unit);
  if (unit === "s") return duration(value);
  const number = decimals === null ? significant(value) : fixed(value, decimals);
  return unit ? `${number} ${unit}` : number;
}
