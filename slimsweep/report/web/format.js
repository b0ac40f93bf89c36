// Elements and text. Data reaches the page as text nodes only, never as HTML.

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const byId = (id) => document.getElementById(id);
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const DASH = "–";

// Plotly reads a little HTML (and links) in its labels: this shows text as it is.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const PREFIXES = [
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
  [1, ""],
];
const prefixOf = (value) => PREFIXES.find(([size]) => Math.abs(value) >= size) || [1, ""];

function significant(value, digits = 3) {
  if (value === 0) return "0";
  const whole = Math.floor(Math.log10(Math.abs(value))) + 1;
  return minus(value.toFixed(Math.max(0, digits - whole)));
}

function scaled(value, unit, gap = " ") {
  if (!known(value)) return DASH;
  const [size, prefix] = unit === "MACs" && Math.abs(value) < 1e6 ? [1e6, "M"] : prefixOf(value); // no one says kMACs
  return `${significant(value / size)}${gap}${prefix}${unit}`;
}

const minus = (text) => text.replace("-", "\u2212");
const fixed = (value, digits = 2) => (known(value) ? minus(value.toFixed(digits)) : DASH);
const signed = (value, digits = 2) => (known(value) ? (value > 0 ? "+" : "") + fixed(value, digits) : DASH);
const percent = (value, digits = 2) => (known(value) ? `${fixed(value, digits)} %` : DASH);
const points = (value) => (known(value) ? `${signed(value)} points` : DASH);
const share = (part, whole) => (known(part) && whole ? `${Math.round((100 * part) / whole)} %` : DASH);
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const withSpread = (mean, se, format = fixed) => (known(se) ? `${format(mean)} ± ${fixed(se)}` : format(mean));

function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 120) return `${significant(seconds, 2)} s`;
  if (seconds < 7200) return `${significant(seconds / 60, 2)} min`;
  return `${significant(seconds / 3600, 3)} h`;
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// Null where there are fewer than two: one number says nothing about spread.
function standardError(values) {
  if (values.length < 2) return null;
  const middle = mean(values);
  return Math.sqrt(values.reduce((a, v) => a + (v - middle) ** 2, 0) / (values.length - 1) / values.length);
}

async function copyText(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch (refused) {
    // Pages from disk may be kept from the clipboard; the old way works there.
    const area = el("textarea", { class: "offscreen" });
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  const label = button.textContent;
  button.textContent = done ? "Copied" : "Not allowed here";
  setTimeout(() => (button.textContent = label), 1200);
}

function saveFile(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const copyButton = (text, label = "Copy") => {
  const button = el("button", { type: "button", class: "quiet" }, label);
  button.addEventListener("click", () => copyText(text, button));
  return button;
};
