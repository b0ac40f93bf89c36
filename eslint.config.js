// Lint of the page's modules and their tests: `npm run lint`. They must also fit the bundler, slimsweep/report/bundle.py.
import js from "@eslint/js";
import globals from "globals";

export default [
  {
    ignores: [
      "**/*",
      "!slimsweep/",
      "!slimsweep/report/",
      "!slimsweep/report/web/**",
      "!tests/",
      "!tests/page/**",
      "!eslint.config.js",
    ],
  },
  js.configs.recommended,
  {
    rules: {
      eqeqeq: "error",
      "no-shadow": "error",
      "no-unused-vars": ["error", { argsIgnorePattern: "^_" }],
      "no-use-before-define": ["error", { functions: false, variables: false }],
      "no-var": "error",
      "object-shorthand": "error",
      "one-var": ["error", "never"],
      "prefer-const": "error",
      "sort-imports": ["error", { ignoreDeclarationSort: true, ignoreCase: true }],
    },
  },
  { files: ["slimsweep/report/web/*.js"], languageOptions: { globals: globals.browser } },
  { files: ["tests/page/*.js", "eslint.config.js"], languageOptions: { globals: globals.node } },
];
