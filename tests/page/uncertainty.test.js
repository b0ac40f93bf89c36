// What the page says of uncertainty: differences, models that are alike, budgets asked for without a unit.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { axisScale } from "../../slimsweep/report/web/axes.js";
import { paretoFront } from "../../slimsweep/report/web/front.js";
import { answerQuestion, FLOPS_NOTE, parseQuestion } from "../../slimsweep/report/web/question.js";
import {
  alikeOf,
  alikeSentence,
  apartFromDense,
  columnText,
  errorSentence,
  meanApartFromDense,
  toldApart,
} from "../../slimsweep/report/web/uncertainty.js";
import { page, viewOf } from "./pages.js";

const casesOf = (name) => JSON.parse(readFileSync(new URL(name, import.meta.url), "utf8"));

for (const { difference, errors, apart } of casesOf("apart_cases.json"))
  test(`${difference} is ${apart ? "more" : "no more"} than errors of ${errors} explain`, () =>
    assert.equal(toldApart(difference, ...errors), apart));

for (const { why, points, tolerance, more_x: moreX, front } of casesOf("tolerance_cases.json"))
  test(`front with a tolerance: ${why}`, () => {
    const items = points.map(([x, y], i) => ({ i, x, y }));
    assert.deepEqual(
      paretoFront(items, moreX, true, tolerance).map((item) => item.i),
      front,
    );
  });

const counted = (data) => {
  data.alike = 0.01;
  data.runs[0].images = { val: 36, test: 360 };
  for (const column of data.columns) if (column.unit === "%") column.decimals = column.name.startsWith("val") ? 0 : 1;
  data.groups.se.test_top1[0] = 1.2; // of one seed, by its images
};

test("the tolerance is a share of the smallest dense model's cost, and none where an axis has no dense model", () => {
  assert.equal(viewOf(page(counted)).tolerance, 4e4);
  assert.equal(viewOf(page(counted), "latency_p50_ms:0").tolerance, 0);
  assert.equal(viewOf(page()).tolerance, 0); // a page that does not say
});

test("numbers have the decimals of their split's images, with their error", () => {
  const of = page(counted);
  assert.equal(columnText(of, "val_top1", 97.2222, null), "97 %");
  assert.equal(columnText(of, "test_top1", 97.2222, 0.87), "97.2 ± 0.9 %");
  assert.equal(columnText(of, "test_top1", null, 0.87), "–");
});

test("a difference from dense within the errors is not told apart", () => {
  const view = viewOf(page(counted));
  const [, half, quarter] = view.groups;
  assert.equal(meanApartFromDense(view, half), false); // 0.5 beside 1.2 and 0.5
  assert.equal(meanApartFromDense(view, quarter), true);
  assert.equal(apartFromDense(view, half.best), false);
  assert.equal(apartFromDense(view, quarter.best), true);
});

test("models of about equal cost and quality are alike, and it is said", () => {
  const view = viewOf(
    page((data) => {
      counted(data);
      data.groups.mean.macs[2] = 2.03e6; // within 1 % of 4 MMACs of the other's 2 MMACs
      data.groups.mean.test_top1[2] = 94;
    }),
  );
  const [dense, half, near] = view.groups;
  assert.deepEqual(alikeOf(view, half), [near]);
  assert.deepEqual(alikeOf(view, dense), []);
  assert.match(
    alikeSentence(view),
    /Costs within 1 % of the dense model's MACs count as equal\. searched at 50 % has others alike/,
  );
  view.groups[2].y = 90; // farther than the error
  assert.deepEqual(alikeOf(view, half), []);
});

test("without an error only equal numbers are alike", () => {
  const view = viewOf(page(counted));
  for (const g of view.groups) [g.x, g.yse] = [2e6, null];
  assert.deepEqual(alikeOf(view, view.groups[1]), []);
  view.groups[2].y = view.groups[1].y;
  assert.deepEqual(alikeOf(view, view.groups[1]), [view.groups[2]]);
});

test("it is said where errors come from, and nothing where there are none", () => {
  assert.match(errorSentence(viewOf(page(counted))), /over seeds, for one seed of a share of 360 images/);
  const none = viewOf(page());
  for (const g of none.groups) g.yse = null;
  assert.equal(errorSentence(none), "");
});

test("at most a percentage of nothing named is a budget", () => {
  const answer = answerQuestion(viewOf(page()), "at most 50 %");
  assert.equal(answer.group.budget, 0.5);
  assert.equal(answer.fits.size, 4);
  assert.match(answer.conditions[0].note, /a budget: a share of the dense model.s MACs/);
  assert.deepEqual(
    parseQuestion("at most 50 percent accuracy").conditions.map((c) => c.kind),
    ["top1"],
  );
  assert.deepEqual(
    parseQuestion("at least 50 %").conditions.map((c) => c.kind),
    ["top1"],
  );
});

test("a model may be a little under its budget, and counts by it", () => {
  const of = page((data) => {
    data.groups.mean.macs[1] = 1.984e6; // 49.6 %
  });
  assert.equal(answerQuestion(viewOf(of), "at most 49.7 %").group.budget, 0.25);
  assert.equal(answerQuestion(viewOf(of), "at most 49.7 % of dense").group.budget, 0.5); // by its own MACs
});

test("a percentage that is a budget too is asked back, another one is an accuracy", () => {
  const back = answerQuestion(viewOf(page()), "50 % and 100k params");
  assert.match(back.problem, /may be a budget or an accuracy/);
  assert.deepEqual(back.choices, ["at most 50 %, 100k params", "at least 50 % accuracy, 100k params"]);
  for (const choice of back.choices) assert.ok(answerQuestion(viewOf(page()), choice).answer, choice);
  assert.equal(answerQuestion(viewOf(page()), "90 %").group.budget, 0.25);
});

test("FLOPs are said to be multiply-accumulates", () => {
  assert.equal(parseQuestion("at most 1.2 GFLOPs").conditions[0].note, FLOPS_NOTE);
  assert.equal(parseQuestion("at most 1.2 GMACs").conditions[0].note, undefined);
});

test("a lucky seed answers nothing", () => {
  // One seed has 91 on validation; their mean is 90.5.
  const answer = answerQuestion(viewOf(page()), "at least 90.8 %");
  assert.equal(answer.group.budget, 0.5);
});

test("an axis of parameters names its size behind its name", () => {
  assert.equal(axisScale({ unit: "parameters" }, [2e5]).unit, "parameters, thousands");
  assert.equal(axisScale({ unit: "parameters" }, [20]).unit, "parameters");
  assert.equal(axisScale({ unit: "MACs" }, [2e6]).unit, "MMACs");
  assert.deepEqual(axisScale({ unit: "MACs" }, [1.2e5]), { size: 1e6, unit: "MMACs" }); // as in the tiles and the table
});
