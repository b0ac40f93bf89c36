// The page's front and knee against the cases that pareto.py is held to as well (tests/test_pareto.py).
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { kneeOf, paretoFront } from "../../slimsweep/report/web/front.js";

const cases = JSON.parse(readFileSync(new URL("front_cases.json", import.meta.url), "utf8"));

test("there are cases with ties, unknown numbers, knees and every sense of the axes", () => {
  assert.ok(cases.length > 100);
  assert.equal(new Set(cases.map((c) => `${c.more_x} ${c.more_y}`)).size, 4);
  assert.ok(cases.filter((c) => c.knee !== null).length > 20);
  assert.ok(cases.filter((c) => c.points.flat().includes(null)).length > 10);
  assert.ok(cases.filter((c) => new Set(c.front.map((i) => String(c.points[i]))).size < c.front.length).length > 5);
});

for (const [n, { points, more_x: moreX, more_y: moreY, front, knee }] of cases.entries()) {
  test(`case ${n}: ${JSON.stringify(points).slice(0, 60)}`, () => {
    const items = points.map(([x, y], i) => ({ i, x, y }));
    const found = paretoFront(items, moreX, moreY);
    assert.deepEqual(
      found.map((item) => item.i),
      front,
    );
    assert.equal(kneeOf(found)?.i ?? null, knee);
    assert.deepEqual(
      items.map((item) => item.i),
      points.map((_, i) => i),
      "the items stay in their order",
    );
  });
}
