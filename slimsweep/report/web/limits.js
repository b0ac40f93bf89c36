// @ts-check
// Budgets in milliseconds as upright lines on the axis of the latency that they count.

import { plain } from "./format.js";
import { LATENCIES } from "./metrics.js";

/** @import { Scale, View } from "./types.js" */

const MOST_LIMITS = 8; // budgets whose lines are drawn: more would be all there is to see

/**
 * The budgets in milliseconds of the runs shown that the x axis measures: milliseconds and words, each once.
 * @param {Pick<View, "page" | "x" | "groups">} view
 * @returns {Map<number, string>}
 */
export function limitsOn({ page, x, groups }) {
  const runs = new Set(groups.map((g) => g.run));
  const own = (page.limits ?? []).filter(([run, s]) => runs.has(run) && x.key === `${LATENCIES[0]}:${s}`);
  const found = new Map(own.map(([, , ms, text]) => [ms, text]));
  return found.size > MOST_LIMITS ? new Map() : found;
}

/**
 * A line, with its budget, per budget in milliseconds.
 * @param {Pick<View, "page" | "x" | "groups" | "logx">} view
 * @param {Scale} sx
 * @param {{ muted: string }} colours
 */
export function limitLines(view, sx, colours) {
  const limits = [...limitsOn(view)].filter(([ms]) => !view.logx || ms > 0);
  const shapes = limits.map(([ms]) => ({
    ...{ type: "line", xref: "x", yref: "paper", x0: ms / sx.size, x1: ms / sx.size, y0: 0, y1: 1, layer: "below" },
    line: { color: colours.muted, width: 1.25, dash: "dot" },
    name: "budget",
  }));
  const annotations = limits.map(([ms, text]) => ({
    ...{ xref: "x", yref: "paper", y: 1, xanchor: "right", yanchor: "top", textangle: -90, showarrow: false, name: "budget" },
    x: view.logx ? Math.log10(ms / sx.size) : ms / sx.size,
    text: plain(`budget ${text}`),
    font: { color: colours.muted, size: 12 },
  }));
  return { shapes, annotations };
}
