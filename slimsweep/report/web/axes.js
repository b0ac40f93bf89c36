// Axes of the figure: in which unit, from where to where, with which ticks.

import { prefixFor, significant, takesPrefix } from "./format.js";

/** @import { Metric, Scale } from "./types.js" */

/** @type {Record<string, string>} */
const WORDS = { k: "thousands", M: "millions", G: "billions", T: "trillions" };

/**
 * An axis in units a person reads: 1.74 MMACs, not 1740000.
 * @param {Pick<Metric, "unit">} metric
 * @param {number[]} values
 * @returns {Scale}
 */
export function axisScale({ unit }, values) {
  if (!takesPrefix(unit)) return { size: 1, unit };
  const [size, prefix] = prefixFor(Math.max(...values.map(Math.abs), 0), unit);
  return { size, unit: unit === "parameters" ? [unit, WORDS[prefix]].filter(Boolean).join(", ") : `${prefix}${unit}` };
}

/**
 * Plotly's own ticks on a log axis of less than a decade are bare digits: these are numbers, as many as there is room for.
 * @param {number[]} values
 */
export function logTicks(values) {
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

/**
 * Where an axis ends: all that is shown, with room for markers and for a line of text above.
 * @param {number[]} values
 * @param {boolean} log
 * @returns {[number, number] | undefined} undefined where nothing is shown
 */
export function rangeOf(values, log) {
  if (!values.length) return undefined;
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (log && low > 0) [low, high] = [Math.log10(low), Math.log10(high)];
  const room = high - low || Math.abs(high) * 0.1 || 1;
  return [low - 0.07 * room, high + 0.09 * room];
}

/**
 * Where along a line (0 to 1, its ends first) and on which side of it a label covers least of what is `taken`.
 * @param {[number, number][]} taken pixels from the lower left
 * @param {number} plotWidth in pixels
 * @param {number} lineY in pixels
 * @param {number} width of the label, in pixels
 * @returns {[number, "top" | "bottom"]}
 */
export function freePlace(taken, plotWidth, lineY, width) {
  /** @type {{ covered: number, place: [number, "top" | "bottom"] } | null} */
  let best = null;
  for (const along of [0, 1, 0.75, 0.5, 0.25]) {
    for (const side of /** @type {const} */ (["bottom", "top"])) {
      const from = along * (plotWidth - width);
      const to = from + width;
      const [low, high] = side === "bottom" ? [lineY, lineY + 18] : [lineY - 18, lineY];
      const covered = taken.filter(([x, y]) => x > from - 24 && x < to + 24 && y > low - 10 && y < high + 10).length;
      if (!best || covered < best.covered) best = { covered, place: [along, side] };
    }
  }
  return /** @type {{ place: [number, "top" | "bottom"] }} */ (best).place;
}
