// The line below the figure that says how many models its range leaves out, and shows them.

import { actions } from "./actions.js";
import { byId, el } from "./dom.js";
import { count } from "./format.js";
import { state } from "./state.js";

/** @import { View } from "./types.js" */

const NAMED = 4; // methods that are named

/** @param {View} view */
export function drawOutside(view) {
  const node = byId("outside");
  const groups = [...view.outside];
  node.hidden = !groups.length;
  if (node.hidden) return;
  const methods = [...new Set(groups.map((g) => g.method))];
  const names =
    methods.length > NAMED ? `${methods.slice(0, NAMED).join("; ")} and ${methods.length - NAMED} more` : methods.join("; ");
  const one = groups.length === 1;
  const side = view.y.more ? "below" : "above";
  const button = el(
    "button",
    { type: "button", id: "whole", "aria-pressed": String(state.whole) },
    state.whole ? "Only what is near the front" : `Show ${one ? "it" : `all ${groups.length}`}`,
  );
  button.addEventListener("click", () => {
    state.whole = !state.whole;
    actions.update();
    byId("whole")?.focus();
  });
  const said = state.whole
    ? "Every model is in the range. "
    : `${count(groups.length, "model")} (${names}) ${one ? "is" : "are"} ${side} this range, which shows what is near the front. `;
  node.replaceChildren(el("span", {}, said), button);
}

/**
 * Whether the figure's range leaves a value out.
 * @param {View} view
 * @param {number} value on the y axis
 */
export function leftOut(view, value) {
  if (!view.cropped) return false;
  const shown = view.groups.filter((g) => !view.outside.has(g)).map((g) => g.y);
  return view.y.more ? value < Math.min(...shown) : value > Math.max(...shown);
}
