// Which uploads a tab is sending just now: no other tab may take them for left over.

const NAME = "twostep-sending::";
const BEAT_MS = 2000;
const STALE_MS = 90_000; // in a hidden tab browsers let a timer run once a minute only

/** Takes the upload at `url` for this caller: a function that gives it back, or null where someone has it, in this tab or another. */
export function hold(url) {
  return navigator.locks ? lock(NAME + url) : beat(NAME + url);
}

/** The addresses of all that is held, as a set. */
export async function held() {
  const names = navigator.locks ? await locked() : beating();
  return new Set(names.filter((name) => name.startsWith(NAME)).map((name) => name.slice(NAME.length)));
}

function lock(name) {
  return new Promise((resolve) => {
    navigator.locks
      .request(name, { ifAvailable: true }, (taken) => (taken ? new Promise((release) => resolve(release)) : resolve(null)))
      .catch(() => resolve(() => {})); // a browser that denies locks denies storage too: then there is nothing to take up
  });
}

async function locked() {
  const { held: locks } = await navigator.locks.query().catch(() => ({ held: [] }));
  return locks.map((one) => one.name);
}

// Browsers know locks on https and on one's own machine only. Elsewhere a tab says in the local storage that it lives.

function beat(name) {
  if (beating().includes(name)) return null;
  const say = () => write(name, String(Date.now()));
  const timer = setInterval(say, BEAT_MS);
  const release = () => {
    clearInterval(timer);
    removeEventListener("pagehide", release);
    write(name, null);
  };
  addEventListener("pagehide", release);
  say();
  return release;
}

function beating() {
  try {
    return Object.keys(localStorage).filter((name) => name.startsWith(NAME) && Date.now() - Number(localStorage.getItem(name)) < STALE_MS);
  } catch {
    return [];
  }
}

function write(name, words) {
  try {
    if (words === null) localStorage.removeItem(name);
    else localStorage.setItem(name, words);
  } catch {
    // Denied, or full: then nothing is remembered of the upload either.
  }
}
