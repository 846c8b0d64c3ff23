// The key to the service, asked for once: the browser then holds it as a cookie that no script can read.

import { ask, askJson } from "./api.js";

const form = document.getElementById("sign-in");
const work = document.getElementById("work");
const signOutButton = document.getElementById("sign-out");

/** Shows the page's work once the service answers this browser; `begin` runs then, each time. */
export async function openSession(begin) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const mistake = document.getElementById("sign-in-mistake");
    mistake.textContent = "";
    try {
      await ask("PUT", "v1/session", { body: { key: form.elements.key.value.trim() } });
      form.reset();
      await show(begin);
    } catch (problem) {
      mistake.textContent = problem.status === 401
        ? "This key is not known here. Look whether all of it was copied, or ask whoever gave it to you."
        : `${problem.message} Try again in a moment.`;
      form.elements.key.select();
    }
  });
  signOutButton.addEventListener("click", async () => {
    await ask("DELETE", "v1/session");
    location.reload();
  });
  await show(begin);
}

/** A key may be withdrawn while the page is open. */
export function askForKey() {
  work.hidden = true;
  signOutButton.hidden = true;
  if (!form.hidden) return;
  form.hidden = false;
  form.elements.key.focus();
}

async function show(begin) {
  const { needs_key: needsKey, authenticated } = await askJson("GET", "v1/session");
  if (needsKey && !authenticated) {
    askForKey();
    return;
  }
  form.hidden = true;
  work.hidden = false;
  signOutButton.hidden = !needsKey;
  begin();
}
