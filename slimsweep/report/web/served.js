// What a page can offer where a service shows it; a page that lies on a disk has none of it.

import { find } from "./dom.js";

/**
 * The address of a model's files, or null where no service shows the page.
 * @param {number} run its place among the page's runs
 * @param {string} point
 * @returns {string | null}
 */
export function downloadsAt(run, point) {
  const shelf = find(".to-shelf a")?.getAttribute("href");
  if (!shelf) return null;
  const asked = [...new Set(new URLSearchParams(location.search).getAll("run"))]; // of a page that compares several
  const own = location.pathname.match(/\/runs\/([^/]+(?:\/[^/]+)?)$/)?.[1];
  const name = own ? own.split("/").map(decodeURIComponent).join("/") : asked[run];
  return name ? `${shelf}downloads?${new URLSearchParams({ run: name, point })}` : null;
}
