// @ts-check
// Sizes of the figure's markers, so that none hides another: where several meet, each lower one is larger and shows around it.

/** @import { Placed, View } from "./types.js" */

/** @typedef {{ range: [number, number] | undefined, size: number, log: boolean, length: number }} Side a unit and pixels */

const SIZE = 10;
const FRONT_SIZE = 12;
const STEP = 5; // by which the next marker below is larger, and in pixels how near markers meet
const LEVELS = 3;
const MANY = 150; // groups: then there is no room for large markers

/**
 * @param {Pick<View, "groups" | "front" | "logx" | "logy">} view
 * @param {Side} across
 * @param {Side} up
 * @returns {Map<Placed, number>} in pixels
 */
export function markerSizes(view, across, up) {
  const front = new Set(view.front);
  if (view.groups.length > MANY) return new Map(view.groups.map((g) => [g, front.has(g) ? 9 : 7]));
  const at = (/** @type {number} */ value, /** @type {Side} */ { range, size, log, length }) => {
    const [low, high] = range ?? [0, 1];
    return (((log ? Math.log10(value / size) : value / size) - low) / (high - low)) * length;
  };
  /** @type {Map<Placed, number>} */
  const sizes = new Map();
  /** @type {{ x: number, y: number, level: number }[]} */
  const placed = [];
  // What comes later lies above where all else is equal, as in the figure's other traces.
  const rest = view.groups.filter((other) => !front.has(other));
  for (const g of [...[...view.front].reverse(), ...rest.reverse()]) {
    const [x, y] = [at(g.x, across), at(g.y, up)];
    const levels = placed.filter((p) => Math.hypot(p.x - x, p.y - y) < STEP + 1).map((p) => p.level + 1);
    const level = Math.min(LEVELS, Math.max(0, ...levels));
    placed.push({ x, y, level });
    sizes.set(g, (front.has(g) ? FRONT_SIZE : SIZE) + STEP * level);
  }
  return sizes;
}
