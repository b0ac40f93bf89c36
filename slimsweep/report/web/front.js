// The Pareto front and its knee: they change with what is shown and with the axes, so the page computes them itself.
// slimsweep/report/pareto.py computes the same for the picture and the terminal; tests/page/front_cases.json holds both to it.

import { known } from "./format.js";

/**
 * @template {{ x: number | null, y: number | null }} T
 * @param {T} item
 * @param {boolean} moreX
 */
const cost = (item, moreX) => /** @type {number} */ (moreX ? -(/** @type {number} */ (item.x)) : item.x);

/**
 * @template {{ x: number | null, y: number | null }} T
 * @param {T} item
 * @param {boolean} moreY
 */
const quality = (item, moreY) => /** @type {number} */ (moreY ? item.y : -(/** @type {number} */ (item.y)));

/**
 * What nothing else dominates, cheapest first; equal items all stay, those with an unknown number are left out. Costs that
 * differ by no more than the tolerance count as equal: from the cheapest item on, then from the next one on.
 * @template {{ x: number | null, y: number | null }} T
 * @param {T[]} items
 * @param {boolean} moreX whether more is better on the x axis (throughput)
 * @param {boolean} moreY whether more is better on the y axis (not of a loss)
 * @param {number} [tolerance]
 * @returns {T[]}
 */
export function paretoFront(items, moreX, moreY, tolerance = 0) {
  const byCost = items
    .filter((item) => known(item.x) && known(item.y))
    .sort((a, b) => cost(a, moreX) - cost(b, moreX) || quality(b, moreY) - quality(a, moreY));
  let start = -Infinity;
  const merged = byCost.map((item) => {
    if (cost(item, moreX) - start > tolerance) start = cost(item, moreX);
    return { item, start, quality: quality(item, moreY) };
  });
  // The sort is stable: of equal quality the cheaper one is first.
  merged.sort((a, b) => a.start - b.start || b.quality - a.quality);
  /** @type {typeof merged} */
  const front = [];
  for (const one of merged) {
    const last = front[front.length - 1];
    if (!last || one.quality > last.quality || (one.start === last.start && one.quality === last.quality)) front.push(one);
  }
  return front.map(({ item }) => item);
}

/**
 * The item farthest above the straight line between the front's ends, both axes scaled to [0, 1]; null where nothing bends.
 * @template {{ x: number, y: number }} T
 * @param {T[]} front as `paretoFront` returns it
 * @returns {T | null}
 */
export function kneeOf(front) {
  if (front.length < 3) return null;
  const [first, last] = [front[0], front[front.length - 1]];
  if (first.x === last.x || first.y === last.y) return null;
  const above = (/** @type {T} */ item) => (item.y - first.y) / (last.y - first.y) - (item.x - first.x) / (last.x - first.x);
  const highest = front.reduce((a, b) => (above(b) > above(a) ? b : a));
  return above(highest) > 1e-9 ? highest : null;
}
