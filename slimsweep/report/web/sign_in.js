// Gives the token to the service, which answers with a cookie to read with. The token itself is kept nowhere.

import { byId } from "./dom.js";

byId("sign-in").addEventListener("submit", async (/** @type {Event} */ event) => {
  event.preventDefault();
  const problem = byId("problem");
  problem.hidden = true;
  const said = await signIn(byId("token").value.trim());
  if (!said) return location.reload();
  problem.textContent = said;
  problem.hidden = false;
  return byId("token").select();
});

/**
 * @param {string} token
 * @returns {Promise<string>} what is wrong; empty where nothing is
 */
async function signIn(token) {
  // Which folder the page is in is not known: a run's page asks to sign in too.
  const depth = /\/runs\/[^/]+\/[^/]+$/.test(location.pathname)
    ? "../../"
    : /\/runs\/[^/]+$/.test(location.pathname)
      ? "../"
      : "";
  try {
    const answer = await fetch(`${depth}api/sign-in`, { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    if (answer.ok) return "";
    return `${(await answer.json()).detail}.`;
  } catch (problem) {
    return `The service does not answer (${problem.message}).`;
  }
}
