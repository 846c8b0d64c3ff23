// A card's panel: two seconds, from a place of one's choice, made before everything else.

import { advice } from "./advice.js";
import { announce } from "./announce.js";
import { address, ask } from "./api.js";
import { element, freshId, write } from "./elements.js";
import { Viewer, frameSeconds } from "./viewer.js";
import { clock } from "./words.js";

const LENGTH_SECONDS = 2;
const ASK_AGAIN_SECONDS = 1;
const SETTLE_MS = 150;

export function open(container, job) {
  return new PreviewPanel(container, job);
}

class PreviewPanel {
  #job;
  #viewer = null;
  #film = "";
  #waiting = new AbortController();
  #timer = null;
  #place;
  #clock = element("output", { class: "clock" });
  #still = element("video", { class: "still", muted: true, playsinline: true, preload: "auto", tabindex: -1, "aria-hidden": "true", hidden: true });
  #make;
  #state = element("p", { class: "hint", role: "status" });
  #result = element("div");

  constructor(container, job) {
    this.#job = job;
    const id = freshId("place");
    this.#place = element("input", { type: "range", id, min: 0, max: 0, step: "any", value: 0, disabled: true, input: () => this.#choose() });
    this.#make = element("button", { type: "submit", class: "primary" }, "Make these two seconds");
    container.replaceChildren(
      element("form", { class: "preview", submit: (event) => { event.preventDefault(); this.#begin(); } },
        this.#still,
        element("div", { class: "field" },
          element("label", { for: id }, "From where"),
          element("div", { class: "controls" }, this.#place, this.#clock)),
        element("div", { class: "row" }, this.#make),
        this.#state),
      this.#result);
    write(this.#clock, clock(0, true));
    this.#still.addEventListener("loadeddata", () => { this.#still.hidden = !this.#still.videoWidth; });
    if (job.links.source) this.#still.src = address(job.links.source);
    this.update(job);
  }

  /** What was made can be looked at also when the job has ended. */
  get outlivesJob() {
    return this.#film !== "";
  }

  update(job) {
    this.#job = job;
    if (!job.links.preview) this.#make.disabled = true;
    const last = (job.source.duration_seconds ?? 0) - LENGTH_SECONDS;
    if (!this.#place.disabled || last <= 0) return;
    // How long it is may only be known some time after it has arrived.
    Object.assign(this.#place, { max: last, value: last / 2, disabled: false });
    this.#choose();
  }

  close() {
    this.#waiting.abort();
    clearTimeout(this.#timer);
    this.#still.removeAttribute("src");
    this.#still.load();
    this.#viewer?.close();
    URL.revokeObjectURL(this.#film);
  }

  #choose() {
    const seconds = Number(this.#place.value);
    write(this.#clock, clock(seconds, true));
    this.#place.setAttribute("aria-valuetext", clock(seconds, true));
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#still.currentTime = seconds;
      this.#still.hidden = !this.#still.videoWidth;
    }, SETTLE_MS);
  }

  async #begin() {
    const atSeconds = Number(this.#place.value);
    this.#waiting.abort();
    this.#waiting = new AbortController();
    const { signal } = this.#waiting;
    const link = this.#job.links.preview; // the job itself may end meanwhile, and what was made stays
    this.#viewer?.close();
    this.#result.replaceChildren();
    write(this.#state, "These two seconds are made before everything else…");
    this.#make.disabled = true;
    try {
      await this.#patiently(signal, () => ask("POST", link, { body: { at_seconds: atSeconds }, signal }));
      const answer = await this.#patiently(signal, () => ask("GET", link, { signal }));
      const madeAtSeconds = Number(answer.headers.get("VSR-At-Seconds") ?? atSeconds);
      this.#show(await answer.blob(), madeAtSeconds);
      this.#still.hidden = true;
      write(this.#state, `Two seconds from ${clock(madeAtSeconds, true)}.`);
      announce("The preview is ready.");
    } catch (problem) {
      if (signal.aborted) return;
      const { what, todo } = advice(problem);
      write(this.#state, `${what} ${todo ?? ""}`);
    } finally {
      this.#make.disabled = !this.#job.links.preview;
    }
  }

  /** As long as it is being made, or another one is. */
  async #patiently(signal, request) {
    for (;;) {
      try {
        return await request();
      } catch (problem) {
        if (signal.aborted || (problem.code !== "preview_under_way" && !problem.mayPass)) throw problem;
        const seconds = problem.retryAfterSeconds ?? ASK_AGAIN_SECONDS;
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
        signal.throwIfAborted();
      }
    }
  }

  #show(film, atSeconds) {
    const { source, links } = this.#job;
    URL.revokeObjectURL(this.#film);
    this.#film = URL.createObjectURL(film);
    this.#viewer = new Viewer({
      size: { width: source.width * 2, height: source.height * 2 },
      frameSeconds: frameSeconds(source),
      durationSeconds: LENGTH_SECONDS,
      beforeUrl: links.source ? address(links.source) : null,
      afterUrl: this.#film,
      thumbnail: links.thumbnail,
      offsetSeconds: atSeconds,
    });
    this.#result.replaceChildren(this.#viewer.element);
  }
}
