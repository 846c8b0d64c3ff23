// What a screen reader is to say, politely: turns of events, never every percent.

const WAIT_MS = 400;
const pending = [];
let timer = null;

export function announce(words) {
  pending.push(words);
  timer ??= setTimeout(() => {
    document.getElementById("announcer").textContent = pending.splice(0).join(" ");
    timer = null;
  }, WAIT_MS);
}
