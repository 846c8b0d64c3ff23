// A question that must be answered before something is lost.

import { element } from "./elements.js";

/** `choices`: [value, words, kind] with kind "primary", "danger" or "". Gives the value, null if it was turned away. */
export function question(title, text, choices) {
  const dialog = document.getElementById("question");
  const before = document.activeElement;
  dialog.replaceChildren(
    element("form", { method: "dialog" },
      element("h2", { id: "question-title" }, title),
      element("p", {}, text),
      element("div", { class: "row end" },
        element("button", { value: "", autofocus: true }, "No, go back"),
        choices.map(([value, words, kind]) => element("button", { value, class: kind || null }, words)))));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (before?.isConnected) before.focus();
      resolve(dialog.returnValue || null);
    }, { once: true });
  });
}
