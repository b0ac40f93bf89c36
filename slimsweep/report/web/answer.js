// What is said below the question box: the answer, or examples of questions.

import { actions } from "./actions.js";
import { byId, el } from "./dom.js";
import { count, known, scaled, significant } from "./format.js";
import { askedOf, latencyMetric, measureOf } from "./metrics.js";
import { EXAMPLES, sayValue } from "./question.js";
import { state } from "./state.js";
import { columnText } from "./uncertainty.js";

/** @import { View } from "./types.js" */

/** @param {View} view */
export function drawAnswer(view) {
  const node = byId("answer");
  const a = view.answer;
  byId("question-clear").hidden = !state.question;
  node.className = a?.problem || (a && !a.answer) ? "unanswered" : "";
  if (!a) return node.replaceChildren();
  if (a.problem) {
    const choices = (a.choices ?? []).flatMap((text) => [
      " ",
      el("button", { type: "button", class: "link", onclick: () => actions.ask(text) }, text),
    ]);
    return node.replaceChildren(a.problem, ...choices);
  }
  if (!a.answer) {
    const miss = a.nearest;
    return node.replaceChildren(
      "No model fits. ",
      miss
        ? `The nearest to \u201c${miss.condition.text}\u201d is ${miss.point.method} at ${askedOf(miss.point)}, with ${sayValue(miss.condition.kind, miss.value)}.`
        : "Some model meets each condition, none meets all of them.",
    );
  }
  const { answer: p, group } = a;
  const run = view.page.runs.length > 1 ? ` of ${view.page.runs[p.run].name}` : "";
  const measure = measureOf(view.page, p.run);
  const { val, test } = measure;
  const setting = a.conditions.map((c) => c.setting).find(Boolean);
  const seeds = group.members.length;
  const number = (name) => columnText(view.page, name, group.mean[name], group.se[name]);
  const best = a.limited ? `The ${measure.highest}` : "The cheapest";
  const said = [
    `: ${scaled(group.mean.macs, "MACs")}, test ${measure.title} ${number(test)} (validation ${number(val)})${seeds > 1 ? `, means over ${seeds} seeds` : ""}.`,
    a.groups.length === 1 ? "The only model that fits" : `${best} of the ${count(a.groups.length, "model")} that fit`,
  ];
  const how = `${measure.word} is judged by validation${setting ? `, speed by ${setting}` : ""}.`;
  const opened = seeds > 1 ? ` Seed ${p.seed}, its best on validation, is opened below.` : "";
  const notes = a.conditions
    .filter((c) => c.note)
    .map((c) => ` \u201c${c.text}\u201d${c.note?.startsWith("means") ? "" : ":"} ${c.note}.`)
    .join("");
  node.replaceChildren(
    el("button", { type: "button", class: "link", onclick: () => actions.choose(p) }, `${p.method} at ${askedOf(p)}${run}`),
    `${said.join(" ")}; ${how}${opened}${notes}`,
  );
  return node;
}

/** @param {View} view */
export function drawExamples(view) {
  const node = byId("examples");
  const ok = view.page.points.filter((p) => p.status === "ok");
  if (!ok.length || node.childNodes.length) return;
  const examples = [
    `at most ${scaled(0.5 * ok[0].macs_dense, "MACs", 2)}`,
    EXAMPLES[view.page.runs[ok[0].run].measure].example,
  ];
  const timed = latencyMetric(view);
  if (timed) {
    const times = ok
      .map(timed.of)
      .filter(known)
      .sort((a, b) => a - b);
    examples.push(`at most ${significant(times[Math.floor(times.length / 2)], 2)} ms`);
  }
  /** @type {HTMLInputElement} */ (byId("question-text")).placeholder = examples.join(", ");
  for (const text of examples) {
    node.append(el("button", { type: "button", class: "link", onclick: () => actions.ask(text) }, text));
  }
}
