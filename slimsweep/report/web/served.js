// What a page can offer where a service shows it; a page that lies on a disk has none of it.

import { find } from "./dom.js";

/**
 * The address of a model's files, or null where no service shows the page.
 * @param {number} run its place among the page's runs
 * @param {string} point
 * @returns {string | null}
 */
export function downloadsAt(run, point) {
  const [shelf, name] = [shelfAt(), nameOf(run)];
  return shelf && name ? `${shelf}downloads?${new URLSearchParams({ run: name, point })}` : null;
}

/** Leads from a page to the same as one file, and from the page of one run to where it is stopped and gone on with. */
export function linkService() {
  const [shelf, link, file] = [shelfAt(), find("#to-sweeps"), find("#to-file")];
  if (!shelf) return;
  const asked = new URLSearchParams(location.search);
  asked.set("whole", "true");
  file.href = `?${asked}`;
  if (!location.pathname.includes("/runs/")) return;
  link.href = `${shelf}sweeps#${new URLSearchParams({ run: nameOf(0) })}`;
  link.hidden = false;
}

const shelfAt = () => find(".to-shelf a")?.getAttribute("href");

/**
 * The name that the service knows a run by.
 * @param {number} run its place among the page's runs
 * @returns {string}
 */
function nameOf(run) {
  const asked = [...new Set(new URLSearchParams(location.search).getAll("run"))]; // of a page that compares several
  const own = location.pathname.match(/\/runs\/([^/]+(?:\/[^/]+)?)$/)?.[1];
  return own ? own.split("/").map(decodeURIComponent).join("/") : asked[run];
}
