// @ts-check
// Which models the figure's y axis makes room for: those near the front. The rest is shown on demand.

import { known } from "./format.js";

/** @import { Metric, Placed } from "./types.js" */

// What the axis needs to know of a view, so that tests need no whole one.
/** @typedef {{ x: Metric, y: Metric, groups: Placed[], front: Placed[], logy: boolean }} Axes */

const SPANS = 1.5; // how far below the front, in heights of the front itself, a model is still near it
const WORTH = 1.6; // the axis is cut only where that makes everything near at least so much taller
const SAME_COST = 0.01; // of the cost: models this close count as equally expensive

/** @param {number[]} values */
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)];

/**
 * The groups that are so far below the front that showing them would press the others together; empty where none is.
 *
 * A model is near where its distance from the front at its own cost is at most 1.5 times the front's height, one point, or
 * the median distance of all models, whichever is most. Logarithmic axes are measured in logarithms. The dense model always
 * has room: all others are compared with it.
 * @param {Axes} view
 * @param {(group: Placed) => Placed[]} frontFor the front of a group's data set
 * @returns {Set<Placed>}
 */
export function outsideOf({ x, y, groups, front, logy }, frontFor) {
  if (front.length === 0 || groups.length < 3) return new Set();
  const quality = (/** @type {number} */ value) => (y.more ? 1 : -1) * (logy ? Math.log10(value) : value);
  const levels = new Map(groups.map((g) => [g, levelFor(g, frontFor(g), x.more, quality)]));
  const gap = (/** @type {Placed} */ g) => /** @type {number} */ (levels.get(g)) - quality(g.y);
  const reached = [...levels.values()];
  const height = Math.max(...reached) - Math.min(...reached);
  const point = y.unit === "%" && !logy ? 1 : 0;
  const near = Math.max(SPANS * height, point, median(groups.map(gap)));
  const kept = groups.filter((g) => g.method === "dense" || gap(g) <= near);
  const span = (/** @type {Placed[]} */ of) => {
    const all = of.map((g) => quality(g.y));
    return Math.max(...all) - Math.min(...all);
  };
  if (span(groups) < WORTH * span(kept)) return new Set();
  const lowest = Math.min(...kept.map((g) => quality(g.y)));
  return new Set(groups.filter((g) => quality(g.y) < lowest));
}

/**
 * The best quality on the front at a group's cost; of its cheapest model where the group is cheaper still.
 * @param {Placed} group
 * @param {Placed[]} front cheapest first
 * @param {boolean} moreX
 * @param {(value: number) => number} quality
 */
function levelFor(group, front, moreX, quality) {
  const affordable = front.filter((f) => (moreX ? f.x >= group.x * (1 - SAME_COST) : f.x <= group.x * (1 + SAME_COST)));
  const level = Math.max(...(affordable.length ? affordable : front.slice(0, 1)).map((f) => quality(f.y)));
  return known(level) ? level : quality(group.y);
}
