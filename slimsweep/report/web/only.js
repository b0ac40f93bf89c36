// @ts-check
// Which series are switched off, when one is clicked, or chosen alone.

const DOUBLE_CLICK_MS = 400;

/** @type {{ key: string, at: number }} */
let last = { key: "", at: -Infinity };

/**
 * Show one series of its kind alone; all of them where it is alone already.
 * @param {Set<string>} off changed
 * @param {string} key
 * @param {string[]} kind all keys of its kind
 */
export function showOnly(off, key, kind) {
  const alone = isAlone(off, key, kind);
  for (const other of kind) {
    if (alone || other === key) off.delete(other);
    else off.add(other);
  }
}

/**
 * Whether a series is the only one of its kind that is shown.
 * @param {Set<string>} off
 * @param {string} key
 * @param {string[]} kind
 */
export const isAlone = (off, key, kind) => !off.has(key) && kind.every((other) => other === key || off.has(other));

/**
 * A click switches a series on or off; a second one soon after shows it alone, or all again where it was alone.
 * The chips are drawn anew in between, so the browser's own event of a double click would not reach them.
 * @param {Set<string>} off changed
 * @param {string} key
 * @param {string[]} kind all keys of its kind
 * @param {number} now in milliseconds
 */
export function clicked(off, key, kind, now) {
  const twice = last.key === key && now - last.at < DOUBLE_CLICK_MS;
  last = twice ? { key: "", at: -Infinity } : { key, at: now };
  if (!off.delete(key)) off.add(key);
  if (twice) showOnly(off, key, kind);
}
