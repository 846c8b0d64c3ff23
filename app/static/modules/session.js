// The key to the service, asked for once: the browser then holds it as a cookie that no script can read.

import { ask, askJson } from "./api.js";

const form = document.getElementById("sign-in");
const work = document.getElementById("work");
const signOutButton = document.getElementById("sign-out");

/**
 * Listens to whoever signs in or out. Gives what shows the page's work once the service answers this browser, which may
 * be tried again: `begin` runs then. `leave` runs once the door is closed.
 */
export function sessionOf({ begin, leave }) {
  let hasBegun = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const mistake = document.getElementById("sign-in-mistake");
    mistake.textContent = "";
    try {
      await ask("PUT", "v1/session", { body: { key: form.elements.key.value.trim() } });
      form.reset();
      if (hasBegun) location.reload(); // the key may be another's, and the list is the former's
      else await open();
    } catch (problem) {
      mistake.textContent = problem.status === 401
        ? "This key is not known here. Look whether all of it was copied, or ask whoever gave it to you."
        : `${problem.message} Try again in a moment.`;
      form.elements.key.select();
    }
  });
  signOutButton.addEventListener("click", async () => {
    await ask("DELETE", "v1/session");
    leave();
    location.reload();
  });
  return open;

  async function open() {
    const { needs_key: needsKey, authenticated } = await askJson("GET", "v1/session");
    if (needsKey && !authenticated) {
      askForKey();
      return;
    }
    form.hidden = true;
    work.hidden = false;
    signOutButton.hidden = !needsKey;
    hasBegun = true;
    begin();
  }
}

/** A key may be withdrawn while the page is open. */
export function askForKey() {
  work.hidden = true;
  signOutButton.hidden = true;
  if (!form.hidden) return;
  form.hidden = false;
  form.elements.key.focus();
}
