import assert from "node:assert/strict";
import { test } from "node:test";

import {
  bare,
  capital,
  count,
  DASH,
  difference,
  duration,
  fixed,
  known,
  percent,
  plain,
  prefixOf,
  scaled,
  share,
  show,
  showSpread,
  signed,
  significant,
  withSpread,
} from "../../slimsweep/report/web/format.js";
import { R2, TOP1 } from "./pages.js";

const UNKNOWN = [null, undefined, NaN, Infinity];

test("what is not a finite number is not known", () => {
  for (const value of [...UNKNOWN, "1", {}]) assert.equal(known(value), false);
  for (const value of [0, -1.5, 1e300]) assert.equal(known(value), true);
});

test("every number that is not known is a dash", () => {
  const column = { unit: "%", decimals: 2 };
  for (const value of UNKNOWN) {
    assert.equal(scaled(value, "MACs"), DASH);
    assert.equal(fixed(value), DASH);
    assert.equal(signed(value), DASH);
    assert.equal(percent(value), DASH);
    assert.equal(difference(TOP1, value), DASH);
    assert.equal(share(value, 1), DASH);
    assert.equal(duration(value), DASH);
    assert.equal(withSpread(value, null), DASH);
    assert.equal(show(column, value), DASH);
  }
  assert.equal(share(1, 0), DASH);
  assert.equal(share(1, null), DASH);
});

test("significant digits", () => {
  assert.equal(significant(0), "0");
  assert.equal(significant(1.23456), "1.23");
  assert.equal(significant(0.0123456), "0.0123");
  assert.equal(significant(123.456), "123");
  assert.equal(significant(1234.56), "1235");
  assert.equal(significant(-1.5, 2), "\u22121.5"); // a minus, not a hyphen
});

test("metric prefixes", () => {
  assert.deepEqual(prefixOf(2.3e9), [1e9, "G"]);
  assert.deepEqual(prefixOf(-5e3), [1e3, "k"]);
  assert.deepEqual(prefixOf(0.5), [1, ""]);
  assert.equal(scaled(1.74e6, "MACs"), "1.74 MMACs");
  assert.equal(scaled(17400, "MACs"), "0.0174 MMACs");
  assert.equal(scaled(4.6e9, "MACs"), "4.60 GMACs");
  assert.equal(scaled(5.7e6, "parameters"), "5.70 M parameters");
  assert.equal(scaled(57, "parameters"), "57.0 parameters");
  assert.equal(scaled(400e3, "B"), "400 kB");
});

test("percent, points and spread", () => {
  assert.equal(percent(96.944), "96.94 %");
  assert.equal(difference(R2, 0.00276), "+0.0028");
  assert.equal(showSpread(R2, 0.95123, 0.0021), "0.9512 ± 0.0021");
  assert.equal(showSpread(TOP1, 81.3, null), "81.30 %");
  assert.equal(difference(TOP1, 0.276), "+0.28 points");
  assert.equal(difference(TOP1, -0.276), "\u22120.28 points");
  assert.equal(signed(0), "0.00");
  assert.equal(share(1, 3), "33 %");
  assert.equal(withSpread(88.2, 0.1234), "88.20 ± 0.12");
  assert.equal(withSpread(88.2, null), "88.20");
});

test("durations", () => {
  assert.equal(duration(22.04), "22 s");
  assert.equal(duration(300), "5.0 min");
  assert.equal(duration(36000), "10.0 h");
});

test("words", () => {
  assert.equal(count(1, "point"), "1 point");
  assert.equal(count(1234, "point"), "1,234 points");
  assert.equal(capital("test top-1"), "Test top-1");
  assert.equal(capital(""), "");
  assert.equal(plain('<b>&"</b>'), '&lt;b&gt;&amp;"&lt;/b&gt;');
});

test("below a title that says the unit, a number stands without it", () => {
  assert.equal(bare({ unit: "parameters", decimals: null }, 5.7e6), "5.70 M");
  assert.equal(bare({ unit: "MACs", decimals: null }, 1.74e6), "1.74 M");
  assert.equal(bare({ unit: "parameters", decimals: null }, null), DASH);
});

test("a column says how its numbers are shown", () => {
  assert.equal(show({ unit: "%", decimals: 2 }, 96.944), "96.94 %");
  assert.equal(show({ unit: "%", decimals: 1 }, 96.944), "96.9 %");
  assert.equal(show({ unit: "nats", decimals: 3 }, 0.12345), "0.123 nats");
  assert.equal(show({ unit: "ms", decimals: null }, 3.14159), "3.14 ms");
  assert.equal(show({ unit: "images/s", decimals: null }, 1234.5), "1235 images/s");
  assert.equal(show({ unit: "MACs", decimals: null }, 1.74e6), "1.74 MMACs");
  assert.equal(show({ unit: "s", decimals: null }, 300), "5.0 min");
  assert.equal(show({ unit: "", decimals: null }, 7), "7.00");
});
