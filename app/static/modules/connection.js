// One line at the top while the service does not answer; everything else stays as it was.

import { onAnswers } from "./api.js";
import { write } from "./elements.js";

const banner = document.getElementById("banner");
const MISSED_BEFORE_SAID = 2;
let missed = 0;

export function tellOfConnection(unauthorized) {
  onAnswers({
    unauthorized,
    reached: () => {
      missed = 0;
      if (navigator.onLine !== false) banner.hidden = true;
    },
    unreached: () => {
      missed += 1;
      if (missed >= MISSED_BEFORE_SAID) show("The service does not answer. What it has accepted is safe; this page tries again by itself.");
    },
  });
  addEventListener("offline", () => show("You are offline. What the service has accepted goes on there; the rest goes on when you are back."));
  addEventListener("online", () => { banner.hidden = true; });
}

function show(words) {
  banner.hidden = false;
  write(banner, words);
}
