// Whose trainings stand on one axis with that of the open point.

import { actions } from "./actions.js";
import { byId, el } from "./dom.js";
import { askedOf, isTrained } from "./metrics.js";
import { state } from "./state.js";

/** @import { Point, View } from "./types.js" */

const CHOICES = {
  seeds: "this model and its seeds",
  budgets: "all budgets of its method",
  methods: "all methods at its budget",
};

/** @param {View} view */
export function curvesChoice(view, p) {
  const pick = el(
    "select",
    { id: "curves", "aria-label": "Trainings on one axis" },
    ...Object.entries(CHOICES).map(([value, text]) => el("option", { value, selected: value === state.curves }, text)),
  );
  pick.addEventListener("change", () => {
    state.curves = pick.value;
    actions.choose(p);
    byId("curves").focus();
  });
  return view.page.groups.length > 1 ? pick : "this model";
}

/**
 * The points whose curves are shown: the seeds of the open one, or the best seed of each group beside it.
 * @param {View} view
 * @returns {Point[]}
 */
export function besideOf(view, p, group) {
  if (state.curves === "seeds" || !group) return group ? group.members : [p];
  const same = (g) =>
    g.run === p.run &&
    isTrained(view.page, g) &&
    (state.curves === "budgets"
      ? g.method === p.method
      : g.budget === p.budget && g.unit === p.unit && g.shares === group.shares);
  return view.page.groups.filter(same).map((g) => (g.members.includes(p) ? p : g.best));
}

/** What tells a curve from those beside it. */
export const curveName = (view, m, p) =>
  state.curves === "seeds" ? `seed ${m.seed}` : state.curves === "budgets" ? askedOf(m) : m.method + (m === p ? " (open)" : "");
