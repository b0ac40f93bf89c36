// Questions to the service that this page comes from.

/**
 * What the service refused, in its own words.
 */
export class Refused extends Error {
  /**
   * @param {number} status
   * @param {any} detail a sentence, or what is wrong with each field
   */
  constructor(status, detail) {
    super(said(detail));
    this.status = status;
    this.isAboutToken = status === 401 || status === 403;
    /** @type {{ sentence: string, field: string, line: number | null }[]} */
    this.problems = detail?.problems ?? [];
  }
}

/** @param {any} detail */
function said(detail) {
  if (typeof detail === "string") return `${detail}.`;
  if (Array.isArray(detail)) return `${detail.map((one) => one.msg ?? String(one)).join("; ")}.`;
  return "Some settings cannot work.";
}

/**
 * The answer as JSON.
 * @param {string} path relative to the page
 * @param {{ method?: string, token?: string, body?: any }} [how]
 * @returns {Promise<any>}
 */
export async function ask(path, { method = "GET", token = "", body } = {}) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (problem) {
    throw new Refused(0, `The service does not answer (${/** @type {Error} */ (problem).message})`);
  }
  const found = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refused(answer.status, found?.detail ?? `The service answered with status ${answer.status}`);
  return found;
}
