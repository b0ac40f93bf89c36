// A form's fields as the text of a sweep.yaml.

import assert from "node:assert/strict";
import test from "node:test";

import { textOf } from "../../slimsweep/report/web/sweep_text.js";

test("fields stand in their sections, lists in brackets, and what YAML would read otherwise in quotes", () => {
  const fields = {
    name: "mine",
    budgets: "0.5, 60% params",
    "model.name": "vit: tiny",
    "data.root": "s3://bucket/x",
    "model.pretrained": "false",
    "retrain.lr": "[1.0e-3]",
    "retrain.seeds": "3",
  };
  assert.equal(
    textOf("digits", fields, new Set(["budgets", "retrain.lr", "retrain.seeds"])),
    `extends: digits
name: mine
budgets: [0.5, "60% params"]
model:
  name: "vit: tiny"
  pretrained: false
data:
  root: "s3://bucket/x"
retrain:
  lr: [1.0e-3]
  seeds: 3
`,
  );
  assert.equal(textOf("digits", {}, new Set()), "extends: digits\n");
});
