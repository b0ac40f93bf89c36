// @ts-check
// Log error: 100 % less an accuracy, on a logarithmic axis. The logarithm of an accuracy itself tells nothing.

import { known } from "./format.js";

/** @import { Metric, Placed } from "./types.js" */

const BEST = 100; // percent

/**
 * The error that a metric in percent leaves; null for other metrics.
 * @param {Metric} metric
 * @returns {Metric | null}
 */
export function errorOf(metric) {
  if (metric.unit !== "%" || !metric.more || metric.error) return null;
  const name = `${metric.name}_error`;
  const title = `${BEST} \u2212 ${metric.title}`;
  const error = { ...metric, name, title, more: false, of: metric.key, best: BEST };
  return {
    ...metric,
    key: `${metric.key}_error`,
    name,
    title,
    label: `${BEST} \u2212 ${metric.label}`,
    more: false,
    error,
    of: (point) => {
      const value = metric.of(point);
      return known(value) ? BEST - value : null;
    },
  };
}

/**
 * Groups placed by an accuracy, placed by its error.
 * @param {Placed[]} groups
 * @returns {Placed[]}
 */
export const placedByError = (groups) => groups.map((g) => ({ ...g, y: BEST - g.y }));
