// Any point beside any other: the choices of what the open point is compared with.

import { el } from "./dom.js";
import { askedOf, measureOf } from "./metrics.js";
import { state } from "./state.js";

/** @import { Group, View } from "./types.js" */

const PREFIX = "point:"; // of a choice that names a point

const nameOf = (view, group) => `${PREFIX}${view.page.runs[group.run].name}|${group.best.point}`;

/**
 * The groups that a point can be compared with: those of its data set, in the order of their methods.
 * @param {View} view
 * @returns {Map<string, Group[]>} by method, or by run and method
 */
function othersOf(view, point) {
  const { page } = view;
  const { dataset } = page.runs[point.run];
  const found = new Map();
  for (const group of page.groups) {
    if (page.runs[group.run].dataset !== dataset || group.members.includes(point)) continue;
    const name = page.runs.length > 1 ? `${page.runs[group.run].name}: ${group.method}` : group.method;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(group);
  }
  return found;
}

/**
 * The choices, one list per method.
 * @param {View} view
 */
export const otherOptions = (view, point) =>
  [...othersOf(view, point)].map(([label, groups]) =>
    el(
      "optgroup",
      { label },
      ...groups.map((g) => {
        const value = nameOf(view, g);
        return el("option", { value, selected: value === state.compare }, `${g.method} at ${askedOf(g)}`);
      }),
    ),
  );

/**
 * The point that the reader chose to compare with, as comparedWith in point.js returns it; null where there is none.
 * @param {View} view
 */
export function chosenOther(view, point) {
  if (!state.compare.startsWith(PREFIX)) return null;
  const group = [...othersOf(view, point).values()].flat().find((g) => nameOf(view, g) === state.compare);
  if (!group) return null;
  const { test } = measureOf(view.page, point.run);
  return {
    name: `${group.method} at ${askedOf(group)}`,
    structure: group.best.layers,
    macs: group.best.macs,
    test: group.mean[test],
    se: group.se[test],
    point: group.best,
  };
}

/** What keeps a point as the other one, while others are opened. */
export function keepChoice(view, point) {
  const group = view.page.groups.find((g) => g.members.includes(point));
  if (group) state.compare = nameOf(view, group);
}
