// @ts-check
// What a form says as the text of a sweep.yaml, which goes on from the form's preset.

/**
 * @param {string} preset
 * @param {Record<string, string>} fields dotted names and values, as a command line gives them
 * @param {Set<string>} lists names of the fields that hold lists
 */
export function textOf(preset, fields, lists) {
  const lines = [`extends: ${preset}`];
  let inside = "";
  // The fields of a section stand together, whatever the order in which they come.
  const parted = Object.entries(fields).map(([name, value]) => ({ parts: name.split("."), value, name }));
  const sections = [...new Set(parted.map(({ parts }) => parts.slice(0, -1).join(".")))];
  for (const section of sections) {
    for (const { parts, value, name } of parted.filter(({ parts: own }) => own.slice(0, -1).join(".") === section)) {
      if (section !== inside) lines.push(`${section}:`);
      inside = section;
      lines.push(`${section ? "  " : ""}${parts.at(-1)}: ${lists.has(name) ? listOf(value) : scalarOf(value)}`);
    }
  }
  return `${lines.join("\n")}\n`;
}

/** @param {string} value */
function listOf(value) {
  if (value.startsWith("[") || /^\d+$/.test(value)) return value; // a whole number says how many, such as of seeds
  const parts = value.split(",").map((part) => part.trim());
  return `[${parts.filter(Boolean).map(scalarOf).join(", ")}]`;
}

/** A value as it is where YAML reads it so, else in quotes. @param {string} value */
const scalarOf = (value) => (/^[\w./][\w./+-]*$/.test(value) ? value : JSON.stringify(value));
