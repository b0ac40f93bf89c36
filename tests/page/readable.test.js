import assert from "node:assert/strict";
import { test } from "node:test";

import { errorOf, placedByError } from "../../slimsweep/report/web/log_error.js";
import { metricsOf } from "../../slimsweep/report/web/metrics.js";
import { outsideOf } from "../../slimsweep/report/web/near.js";
import { clicked, isAlone, showOnly } from "../../slimsweep/report/web/only.js";
import { markerSizes } from "../../slimsweep/report/web/sizes.js";
import { page } from "./pages.js";

const accuracy = { more: true, unit: "%" };
const at = (x, y) => ({ x, y });
const outside = (groups, front, y = accuracy, x = { more: false }) => {
  const found = outsideOf({ x, y, groups, front, logy: false }, () => front);
  return groups.filter((g) => found.has(g)).map((g) => g.y);
};

test("models far below the front are outside the range, those near it are not", () => {
  const front = [at(1, 88), at(2, 89), at(4, 89.6)];
  const near = [at(1, 86.5), at(2, 88.5), at(4, 89.4)];
  assert.deepEqual(outside([...front, ...near, at(2, 71), at(4, 76)], front), [71, 76]);
  assert.deepEqual(outside([...front, ...near], front), []);
});

test("of a loss, models far above the front are outside", () => {
  const front = [at(1, 0.4), at(2, 0.35), at(4, 0.33)];
  assert.deepEqual(outside([...front, at(1, 0.42), at(4, 3)], front, { more: false, unit: "nats" }), [3]);
});

test("a cut of the range that gains little is not made, and no front leaves nothing out", () => {
  const front = [at(1, 80), at(4, 90)];
  assert.deepEqual(outside([...front, at(1, 78), at(2, 79), at(4, 74)], front), []);
  assert.deepEqual(outside([at(1, 10), at(1, 20), at(1, 90)], []), []);
});

test("the dense model is in the range, also where all cuts are far better", () => {
  const front = [at(1, 67)];
  const dense = { ...at(3, 44), method: "dense" };
  assert.deepEqual(outside([...front, at(2, 63), dense], front), []);
  assert.deepEqual(outside([...front, at(2, 63), at(3, 44)], front), [44]);
  assert.deepEqual(outside([...front, at(2, 63), dense, at(2, 10)], front), [10]);
});

test("a double click shows one alone, and all again", () => {
  const kind = ["m:a", "m:b", "m:c"];
  const off = new Set();
  clicked(off, "m:a", kind, 1000);
  assert.deepEqual([...off], ["m:a"]);
  clicked(off, "m:a", kind, 1200);
  assert.deepEqual([...off].sort(), ["m:b", "m:c"]);
  assert.ok(isAlone(off, "m:a", kind));
  clicked(off, "m:b", kind, 1300); // another one soon after is a click of its own: two methods in two gestures
  assert.deepEqual([...off], ["m:c"]);
  clicked(off, "m:b", kind, 3000);
  assert.ok(isAlone(off, "m:a", kind));
  showOnly(off, "m:a", kind);
  assert.equal(off.size, 0);
});

test("the choice of one method leaves runs as they are", () => {
  const off = new Set(["r:x"]);
  showOnly(off, "m:a", ["m:a", "m:b"]);
  assert.deepEqual([...off].sort(), ["m:b", "r:x"]);
});

test("only an accuracy has a log error, 100 % less its value", () => {
  const { y } = metricsOf(page());
  const error = errorOf(y[1]);
  assert.equal(error.of(page().points[0]), 5);
  assert.equal(error.of(page().points[5]), null);
  assert.equal(error.more, false);
  assert.equal(errorOf(error), null);
  assert.equal(errorOf({ ...y[1], unit: "nats" }), null);
  assert.deepEqual(placedByError([at(1, 97)]), [at(1, 3)]);
});

test("of markers that meet, each lower one is larger", () => {
  const groups = [at(1, 90), at(1, 90), at(1, 90.01), at(3, 70)];
  const side = (range) => ({ range, size: 1, log: false, length: 400 });
  const sizes = markerSizes({ groups, front: [groups[0]], logx: false, logy: false }, side([0, 4]), side([60, 100]));
  const [first, second, third, apart] = groups.map((g) => sizes.get(g));
  assert.equal(new Set([first, second, third]).size, 3);
  assert.ok(Math.min(second, third) > first);
  assert.ok(apart < first);
});
