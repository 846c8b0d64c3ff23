// Two pictures of the same place, one over the other, with a divider between them; and a magnifying glass to the pixels.
// Knows nothing of time: what is laid in may be videos or images.

import { element, freshId } from "./elements.js";

const GRAB_PX = 32;
const PAN_STEP_PX = 48;
const ZOOMS = [
  ["fit", "Fit"],
  ["1", "1 : 1"],
  ["2", "2 : 1"],
  ["4", "4 : 1"],
];

export class Stage {
  #split = 50;
  #zoom = "fit";
  #pan = { x: 0.5, y: 0.5 }; // what part of the picture is in the middle
  #size; // of the result, in pixels
  #onKey;
  #before = element("div", { class: "layer before" });
  #after = element("div", { class: "layer after" });
  #range;
  #observer = new ResizeObserver(() => this.#lay());

  /** `size`: {width, height} of the picture at its full size. `onKey(event)`: keys that are not the stage's own. */
  constructor(size, onKey = () => {}) {
    this.#size = size;
    this.#onKey = onKey;
    const helpId = freshId("keys");
    this.#range = element("input", {
      type: "range", min: 0, max: 100, step: 1, value: 50, class: "divide", "aria-label": "Divider between before and after",
      "aria-describedby": helpId, input: () => this.#divide(Number(this.#range.value)), keydown: (event) => this.#key(event),
    });
    this.picture = element("div", { class: "stage" },
      this.#before, this.#after,
      element("span", { class: "tag before", "aria-hidden": "true" }, "Before"),
      element("span", { class: "tag after", "aria-hidden": "true" }, "After"),
      this.#range,
      element("div", { class: "divider", "aria-hidden": "true" }, element("span", { class: "handle" })));
    const group = freshId("zoom");
    this.zoomChoice = element("fieldset", { class: "segments zoom" }, element("legend", { class: "unseen" }, "Zoom"),
      ZOOMS.map(([value, words]) => element("label", { class: "segment" },
        element("input", { type: "radio", name: group, value, checked: value === "fit", change: () => this.zoom(value) }),
        element("span", {}, words))));
    this.help = element("p", { class: "hint keys", id: helpId },
      "Drag the divider, or use ← and →. Space plays, comma and full stop go one frame, + and − zoom, Shift with arrows moves the picture.");
    this.picture.addEventListener("pointerdown", (event) => this.#grab(event));
    this.#observer.observe(this.picture);
    this.#lay();
    this.#divide(50);
  }

  /** Videos or images; the one below is `before`. Null: there is none to compare with. */
  show(before, after) {
    this.#before.replaceChildren(...(before ? [before] : []));
    this.#after.replaceChildren(...(after ? [after] : []));
    const isPair = Boolean(before && after);
    this.picture.classList.toggle("single", !isPair);
    this.#range.disabled = !isPair;
    this.#lay();
  }

  resize(size) {
    this.#size = size;
    this.#lay();
  }

  zoom(value) {
    this.#zoom = value;
    for (const input of this.zoomChoice.querySelectorAll("input")) input.checked = input.value === value;
    this.#lay();
  }

  close() {
    this.#observer.disconnect();
  }

  #divide(percent) {
    this.#split = Math.max(0, Math.min(100, percent));
    this.#range.value = this.#split;
    this.#range.setAttribute("aria-valuetext", `${Math.round(this.#split)} % before, the rest after`);
    this.picture.style.setProperty("--split", `${this.#split}%`);
  }

  /** One pixel of the result is so many pixels of the screen. */
  #lay() {
    const { width, height } = this.#size;
    this.picture.style.setProperty("--ratio", `${width} / ${height}`);
    const box = this.picture.getBoundingClientRect();
    if (!box.width) return;
    const fit = Math.min(box.width / width, box.height / height);
    const scale = this.#zoom === "fit" ? fit : Number(this.#zoom) / devicePixelRatio;
    const shown = { width: width * scale, height: height * scale };
    const left = this.#placed(box.width, shown.width, "x");
    const top = this.#placed(box.height, shown.height, "y");
    for (const [name, value] of Object.entries({ "--width": shown.width, "--height": shown.height, "--left": left, "--top": top })) {
      this.picture.style.setProperty(name, `${value}px`);
    }
    this.picture.classList.toggle("pixels", this.#zoom !== "fit" && Number(this.#zoom) > 1);
    this.picture.classList.toggle("movable", shown.width > box.width + 1 || shown.height > box.height + 1);
  }

  #placed(room, length, axis) {
    if (length <= room) {
      this.#pan[axis] = 0.5;
      return (room - length) / 2;
    }
    const edge = room / 2 / length;
    this.#pan[axis] = Math.max(edge, Math.min(1 - edge, this.#pan[axis]));
    return room / 2 - this.#pan[axis] * length;
  }

  #move(xPx, yPx) {
    this.#pan.x -= xPx / parseFloat(this.picture.style.getPropertyValue("--width"));
    this.#pan.y -= yPx / parseFloat(this.picture.style.getPropertyValue("--height"));
    this.#lay();
  }

  #grab(event) {
    if (event.button !== 0 || event.target.closest("button")) return;
    const box = this.picture.getBoundingClientRect();
    const x = event.clientX - box.left;
    const isNearDivider = Math.abs(x - (this.#split / 100) * box.width) < GRAB_PX;
    const divides = !this.#range.disabled && (isNearDivider || !this.picture.classList.contains("movable"));
    if (!divides && !this.picture.classList.contains("movable")) return;
    event.preventDefault();
    this.#range.focus({ preventScroll: true, focusVisible: false });
    this.picture.setPointerCapture(event.pointerId);
    this.picture.classList.add("held");
    let last = event;
    const drag = (next) => {
      if (divides) this.#divide(((next.clientX - box.left) / box.width) * 100);
      else this.#move(next.clientX - last.clientX, next.clientY - last.clientY);
      last = next;
    };
    if (divides) drag(event);
    this.picture.addEventListener("pointermove", drag);
    const release = () => {
      this.picture.removeEventListener("pointermove", drag);
      this.picture.classList.remove("held");
    };
    this.picture.addEventListener("pointerup", release, { once: true });
    this.picture.addEventListener("pointercancel", release, { once: true });
  }

  #key(event) {
    const step = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.shiftKey && step) this.#move(step[0] * PAN_STEP_PX, step[1] * PAN_STEP_PX);
    else if (event.key === "+" || event.key === "=") this.#zoomBy(1);
    else if (event.key === "-") this.#zoomBy(-1);
    else if (!this.#onKey(event)) return;
    event.preventDefault();
  }

  #zoomBy(step) {
    const index = ZOOMS.findIndex(([value]) => value === this.#zoom) + step;
    if (ZOOMS[index]) this.zoom(ZOOMS[index][0]);
  }
}
