// The numbers above the figure: the dense model, the smallest model close to it, the knee, the most accurate model.

import { actions } from "./actions.js";
import { byId, el } from "./dom.js";
import { capital, difference, known, share, show, showSpread } from "./format.js";
import { askedOf, costName, isDense, isTrained, judged, measureOf, placedGroups, trainedOf } from "./metrics.js";

/** @import { View } from "./types.js" */

/** @param {View} view */
export function drawHeadline(view) {
  const { page } = view;
  const node = byId("headline");
  node.hidden = page.runs.length > 1 || !view.groups.length;
  if (node.hidden) return undefined;
  const run = 0;
  const measure = measureOf(page, run);
  const dense = view.dense[run];
  // Sizes are in the cost that is the axis, or in MACs where something else is, such as a time.
  const isCost = view.shown.some((p) => known(p[`${view.x.key}_dense`]));
  const bySize = isCost ? view.x : (view.metrics.x.find((m) => m.key === "macs") ?? view.x);
  const sizeOf = (p) => show(bySize, p[bySize.key]);
  const shareOf = (p) => `${share(p[bySize.key], p[`${bySize.key}_dense`])} of ${costName(bySize.key)}`;
  const byTest = view.metrics.y.find((m) => m.key === measure.test) ?? view.y;
  const groups = trainedOf(page, placedGroups(page, new Set(view.shown), bySize, byTest));
  if (!groups.length) return node.replaceChildren();
  const stat = (term, value, note, point) => {
    const inner = [el("dt", {}, term), el("dd", {}, value), el("small", {}, note)];
    return point ? el("button", { type: "button", onclick: () => actions.choose(point) }, ...inner) : el("div", {}, ...inner);
  };
  const stats = [];
  if (dense.group) {
    const { mean, se, best } = dense.group;
    const note = `test ${measure.title} at ${sizeOf(best)}`;
    stats.push(
      stat(
        isTrained(page, best) ? "Dense, retrained" : "Dense, untouched",
        showSpread(measure, mean[measure.test], se[measure.test]),
        note,
        best,
      ),
    );
  } else if (known(dense.test)) stats.push(stat("Dense, untouched", show(measure, dense.test), `test ${measure.title}`));
  // Chosen by validation, reported on the test split.
  const near = (group) => !isDense(group) && judged(measure, group.mean) >= dense.val - measure.point;
  const close = known(dense.val) ? groups.filter(near) : [];
  if (close.length) {
    const least = close.reduce((a, b) => (b.x < a.x ? b : a));
    stats.push(
      stat(
        `Smallest within ${measure.points ? "1 point" : `${measure.point} of dense`}`,
        shareOf(least.best),
        `by validation; test ${difference(measure, least.y - dense.test)}`,
        least.best,
      ),
    );
  }
  if (view.knee)
    stats.push(stat("Knee", shareOf(view.knee.best), `${view.y.label} ${show(view.y, view.knee.y)}`, view.knee.best));
  const top = groups.reduce((a, b) => (judged(measure, b.mean) > judged(measure, a.mean) ? b : a));
  stats.push(
    stat(
      capital(measure.highest),
      showSpread(measure, top.y, top.yse),
      `test ${measure.title}, ${top.method} at ${askedOf(top)}`,
      top.best,
    ),
  );
  return node.replaceChildren(...stats);
}
