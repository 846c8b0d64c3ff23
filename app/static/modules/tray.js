// The chosen videos, before they start: what they are, what they will take, and what is asked for.

import { announce } from "./announce.js";
import { askJson } from "./api.js";
import { element, smallPicture, write } from "./elements.js";
import { optionFields } from "./options.js";
import { factsOf } from "./source_facts.js";
import { clock, count, dimensions, roughTime, size } from "./words.js";

const SETTLE_MS = 250;
const ESTIMATED_BY = ["preset", "codec", "container", "quality", "crf", "encoder_preset", "reuse"];

export class Tray {
  #section = document.getElementById("tray");
  #chosen = new Map(); // file -> {row, facts, estimate}
  #options = null;
  #list = element("ul", { class: "chosen" });
  #total = element("p", { class: "total", role: "status" });
  #start = element("button", { type: "submit", class: "primary" });
  #onStart;
  #timer = null;

  /** `onStart(chosen, options)`: [{file, poster}], and the options as the API wants them. */
  constructor(onStart) {
    this.#onStart = onStart;
  }

  /** Builds the form anew, with the networks that the service has now. */
  async prepare() {
    const { models } = await askJson("GET", "v1/models");
    this.#options = optionFields(models, () => this.#estimateSoon());
    this.#section.replaceChildren(
      element("form", { submit: (event) => this.#submit(event), "aria-labelledby": "tray-title" },
        element("h2", { id: "tray-title", tabindex: -1 }, "Ready to start"),
        this.#list,
        this.#options.fields,
        element("div", { class: "row start" },
          this.#start,
          element("button", { type: "button", click: () => this.#clear() }, "Not now"),
          this.#total)));
  }

  async add(files) {
    if (!this.#options) await this.prepare();
    for (const file of files) {
      if ([...this.#chosen.keys()].some((one) => one.name === file.name && one.size === file.size && one.lastModified === file.lastModified)) continue;
      this.#chosen.set(file, { row: this.#row(file), facts: undefined, estimate: null });
      this.#look(file);
    }
    this.#show();
    if (!this.#chosen.size) return;
    const title = document.getElementById("tray-title");
    title.focus({ preventScroll: true });
    this.#section.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    announce(`${count(this.#chosen.size, "video")} ready to start.`);
  }

  #row(file) {
    const facts = element("span", { class: "facts" }, size(file.size));
    const estimate = element("span", { class: "estimate" }, "Looking at it…");
    const remove = element("button", { type: "button", class: "plain", "aria-label": `Remove ${file.name}`, click: () => this.#remove(file) }, "Remove");
    const row = element("li", {}, smallPicture(), element("span", { class: "name" }, file.name), facts, estimate, remove);
    this.#list.append(row);
    return row;
  }

  async #look(file) {
    const entry = this.#chosen.get(file);
    entry.facts = file.size ? await factsOf(file) : null;
    if (!this.#chosen.has(file)) return;
    if (entry.facts?.poster) entry.row.querySelector(".picture").replaceWith(smallPicture(entry.facts.poster));
    const words = [size(file.size)];
    if (entry.facts) {
      words.unshift(dimensions(entry.facts.width, entry.facts.height), clock(entry.facts.durationSeconds));
    }
    write(entry.row.querySelector(".facts"), words.join(" · "));
    this.#estimateSoon();
  }

  #estimateSoon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#estimate(), SETTLE_MS);
  }

  async #estimate() {
    const options = this.#options.read();
    const asked = Object.fromEntries(ESTIMATED_BY.filter((name) => name in options).map((name) => [name, options[name]]));
    await Promise.all([...this.#chosen].map(async ([file, entry]) => {
      if (entry.facts === undefined) return;
      const target = entry.row.querySelector(".estimate");
      if (!file.size) {
        write(target, "The file is empty. Export or copy it again.");
        return;
      }
      entry.estimate = null;
      if (!entry.facts) {
        write(target, "This browser cannot look inside; how long it takes is known once it is there.");
        return;
      }
      const { width, height, durationSeconds, frameRate } = entry.facts;
      try {
        entry.estimate = await askJson("POST", "v1/estimate", {
          body: { width, height, duration_seconds: durationSeconds, frame_rate: frameRate, ...asked },
        });
      } catch {
        // An estimate is a kindness: without one the video can start all the same.
      }
      write(target, estimateWords(entry.estimate, width, height));
    }));
    this.#writeTotal();
  }

  #writeTotal() {
    const estimates = [...this.#chosen.values()].map((entry) => entry.estimate);
    if (estimates.length === 0 || estimates.some((one) => one?.seconds == null)) {
      write(this.#total, "");
      return;
    }
    const wait = Math.max(...estimates.map((one) => one.wait_seconds ?? 0));
    const work = estimates.reduce((sum, one) => sum + one.seconds, 0);
    write(this.#total, `Done in about ${roughTime(wait + work)}, after the upload.`);
  }

  #show() {
    this.#section.hidden = this.#chosen.size === 0;
    document.body.classList.toggle("has-tray", this.#chosen.size > 0);
    write(this.#start, this.#chosen.size === 1 ? "Start" : `Start ${this.#chosen.size} videos`);
    this.#writeTotal();
  }

  #remove(file) {
    this.#chosen.get(file).row.remove();
    this.#chosen.delete(file);
    this.#show();
    if (this.#chosen.size) document.getElementById("tray-title").focus();
    else document.getElementById("choose").focus();
  }

  #clear() {
    this.#list.replaceChildren();
    this.#chosen.clear();
    this.#show();
    document.getElementById("choose").focus();
  }

  #submit(event) {
    event.preventDefault();
    const chosen = [...this.#chosen].map(([file, { facts }]) => ({ file, poster: facts?.poster ?? null }));
    this.#options.remember();
    this.#list.replaceChildren();
    this.#chosen.clear();
    this.#show();
    this.#onStart(chosen, this.#options.read());
    document.getElementById("videos").focus();
  }
}

function estimateWords(estimate, width, height) {
  const words = [`becomes ${dimensions(width * 2, height * 2)}`];
  if (estimate?.seconds != null) words.push(`about ${roughTime(estimate.seconds)}${turns(estimate)}`);
  else words.push("how long it takes is known after the first video like it");
  if (estimate?.result_bytes != null) words.push(`about ${size(estimate.result_bytes)}`);
  return words.join(" · ");
}

/** Videos take turns, segment by segment. */
function turns({ seconds, wait_seconds: others }) {
  return others > 1 ? `, ${roughTime(seconds + others)} with the turns of other videos` : "";
}
