// Which runs the shelf shows, and in which order.

import assert from "node:assert/strict";
import test from "node:test";

import { addressOf, ago, comparisonOf, filtered, ordered, perState, valuesOf } from "../../slimsweep/report/web/shelf_order.js";

const RUNS = [
  {
    name: "b",
    state: "finished",
    why: "",
    model: "deit",
    data: "birds",
    done: 7,
    near: { share: 0.5 },
    changed: "2026-01-02T00:00:00Z",
  },
  {
    name: "A",
    state: "failed",
    why: "CUDA out of memory",
    model: "swin",
    data: "birds",
    done: 9,
    near: { share: 0.25 },
    changed: "2026-01-03T00:00:00Z",
  },
  { name: "c", state: "running", why: "", model: "deit", data: "leaves", done: 10, near: null, changed: null },
  { name: "d", state: "unreadable", why: "config.yaml is damaged" },
];
const ANY = { search: "", state: "", model: "", data: "", sort: "" };
const names = (runs) => runs.map((run) => run.name).join("");

test("all words of a search are found, anywhere and in any case", () => {
  assert.equal(names(filtered(RUNS, ANY)), "bAcd");
  assert.equal(names(filtered(RUNS, { ...ANY, search: "birds DEIT" })), "b");
  assert.equal(names(filtered(RUNS, { ...ANY, search: "memory" })), "A");
  assert.equal(names(filtered(RUNS, { ...ANY, search: "memory deit" })), "");
  assert.equal(names(filtered(RUNS, { ...ANY, search: "damaged" })), "d");
});

test("filters by state, model and data hold together", () => {
  assert.equal(names(filtered(RUNS, { ...ANY, state: "running" })), "c");
  assert.equal(names(filtered(RUNS, { ...ANY, model: "deit", data: "birds" })), "b");
});

test("numbers are sorted as numbers, names without regard to case", () => {
  assert.equal(names(ordered(RUNS, "name:up")), "Abcd");
  assert.equal(names(ordered(RUNS, "name:down")), "dcbA");
  assert.equal(names(ordered(RUNS, "points:down")), "cAbd");
  assert.equal(names(ordered(RUNS, "points:up")), "bAcd");
});

test("runs without a value come last either way", () => {
  assert.equal(names(ordered(RUNS, "near:up")), "Abcd");
  assert.equal(names(ordered(RUNS, "near:down")), "bAcd");
  assert.equal(names(ordered(RUNS, "changed:down")), "Abcd");
});

test("what runs comes before what failed, stopped and is done; an unknown order is the latest first", () => {
  assert.equal(names(ordered(RUNS, "state:up")), "cAbd");
  assert.equal(names(ordered(RUNS, "nonsense:down")), "Abcd");
});

test("states are counted, values are listed once", () => {
  assert.deepEqual(perState(RUNS), [
    ["running", 1],
    ["failed", 1],
    ["finished", 1],
    ["unreadable", 1],
  ]);
  assert.deepEqual(valuesOf(RUNS, "model"), ["deit", "swin"]);
});

test("addresses keep each name one part of a path", () => {
  assert.equal(addressOf("sizes/small"), "runs/sizes/small");
  assert.equal(addressOf("a b?c#d%"), "runs/a%20b%3Fc%23d%25");
  assert.equal(comparisonOf(["a&b", "c/d"]), "compare?run=a%26b&run=c%2Fd");
});

test("times are told in words, and never in the future", () => {
  const now = Date.parse("2026-01-02T12:00:00Z");
  assert.equal(ago("2026-01-02T11:59:18Z", now), "42 s ago");
  assert.equal(ago("2026-01-02T11:30:00Z", now), "30 min ago");
  assert.equal(ago("2026-01-02T03:00:00+00:00", now), "9 h ago");
  assert.equal(ago("2026-01-02T12:00:09Z", now), "0 s ago");
  assert.match(ago("2025-11-27T12:00:00Z", now), /2025/);
});
