// One job: what it is, how far it has come, what can be done with it. Updated in place, so that the focus stays put.

import { advice } from "./advice.js";
import { announce } from "./announce.js";
import { address, askJson } from "./api.js";
import { element, freshId, smallPicture, write } from "./elements.js";
import { question } from "./question.js";
import { clock, count, dimensions, moment, place, rate, roughTime, size } from "./words.js";

const PANELS = {
  compare: () => import("./compare_panel.js"),
  preview: () => import("./preview_panel.js"),
  report: () => import("./report_panel.js"),
};

export class Card {
  #actions;
  #open = null; // {name, panel}
  #thumbnailOf = null;
  #parts;
  #buttons = {};

  /** `poster`: a picture until the service has one. `actions`: changed(job) after a request of ours, remove(), opened() when a panel opens or closes. */
  constructor(job, poster, actions) {
    this.job = job;
    this.#actions = actions;
    this.#build(poster);
    this.update(job);
  }

  /** Nothing of it will change any more by itself. */
  get isSettled() {
    const { status, partial_result: partial } = this.job;
    return ["succeeded", "failed"].includes(status) || (status === "canceled" && partial !== "being_made");
  }

  get isOpen() {
    return this.#open !== null;
  }

  focus() {
    this.#parts.name.focus();
  }

  close() {
    this.#open?.panel?.close();
    this.#open = null;
    this.#parts.panel.replaceChildren();
    this.#parts.panel.hidden = true;
    for (const name of Object.keys(PANELS)) this.#buttons[name].setAttribute("aria-expanded", "false");
    this.#actions.opened();
  }

  update(job) {
    this.job = job;
    const { status } = job;
    const hadFocus = document.activeElement?.closest?.("button") && this.element.contains(document.activeElement) ? document.activeElement : null;
    this.element.className = `card ${status}`;
    write(this.#parts.name, job.source.name);
    write(this.#parts.facts, facts(job));
    write(this.#parts.state, stateWords(job));
    this.#showProgress();
    this.#showMistake();
    this.#showThumbnail();
    const has = this.#possible();
    for (const [name, button] of Object.entries(this.#buttons)) button.hidden = !has.has(name);
    write(this.#buttons.compare, status === "running" ? "Watch" : "Compare");
    if (has.has("download")) {
      this.#buttons.download.href = address(job.links.result);
    }
    if (hadFocus?.hidden) this.focus();
    if (this.#open && !has.has(this.#open.name) && !this.#open.panel?.outlivesJob) this.close();
    else this.#open?.panel?.update(job);
  }

  #build(poster) {
    const nameId = freshId("name");
    const progressId = freshId("figures");
    const button = (name, words, act, kind = null) => {
      this.#buttons[name] = element("button", { type: "button", class: kind, "aria-describedby": nameId, click: act }, words);
      return this.#buttons[name];
    };
    const toggle = (name, words, kind = null) => {
      const made = button(name, words, () => this.#toggle(name), kind);
      made.setAttribute("aria-expanded", "false");
      return made;
    };
    this.#buttons.download = element("a", { class: "button primary", download: true, "aria-describedby": nameId }, "Download");
    this.#parts = {
      picture: smallPicture(poster),
      name: element("h3", { id: nameId, tabindex: -1 }),
      state: element("p", { class: "state" }),
      facts: element("p", { class: "facts" }),
      bar: element("progress", { "aria-labelledby": nameId, "aria-describedby": progressId }),
      figures: element("p", { class: "figures", id: progressId }),
      mistake: element("div", { class: "mistake", hidden: true }),
      panel: element("div", { class: "panel", hidden: true }),
    };
    const { picture, name, state, facts: factLine, bar, figures, mistake, panel } = this.#parts;
    this.element = element("li", {},
      element("div", { class: "head" }, picture, element("div", { class: "title" }, name, factLine, state)),
      bar, figures, mistake,
      element("div", { class: "row" },
        this.#buttons.download,
        toggle("compare", "Compare"),
        toggle("preview", "Two-second preview"),
        toggle("report", "What was kept"),
        button("retry", "Try again", () => this.#ask("POST", "retry")),
        button("cancel", "Stop", () => this.#cancel()),
        button("delete", "Delete", () => this.#delete(), "plain")),
      panel);
  }

  #possible() {
    const { status, result, links, progress, options } = this.job;
    const kept = result !== null && !expired(result);
    const has = new Set(["delete"]);
    if (kept) has.add("download").add("report");
    const pictures = options.codec !== "png" && options.container !== "zip";
    if ((kept || (status === "running" && progress.segments_done > 0)) && (pictures || links.thumbnail)) has.add("compare");
    if (links.preview && ["queued", "running"].includes(status) && this.job.source.duration_seconds !== 0) has.add("preview");
    if (["queued", "running"].includes(status)) has.add("cancel");
    if (status === "failed" || (status === "canceled" && !result)) has.add("retry");
    return has;
  }

  #showProgress() {
    const { status, progress, partial_result: partial } = this.job;
    const { bar, figures } = this.#parts;
    const isAtWork = status === "running" || (status === "canceled" && partial === "being_made");
    bar.hidden = !isAtWork;
    figures.hidden = !isAtWork;
    if (!isAtWork) return;
    bar.max = 1;
    if (progress.frames_total && partial !== "being_made") bar.value = progress.fraction;
    else bar.removeAttribute("value");
    write(figures, partial === "being_made" ? "Putting together what was finished" : figureWords(progress));
  }

  #showMistake() {
    const { error, result } = this.job;
    const { mistake } = this.#parts;
    const problem = error ?? (result && expired(result) ? { code: "result_expired", message: "The result is no longer kept." } : null);
    mistake.hidden = !problem;
    if (!problem || mistake.dataset.code === problem.code + problem.message) return;
    mistake.dataset.code = problem.code + problem.message;
    const { what, todo } = advice(problem);
    mistake.replaceChildren(element("p", {}, what), ...(todo ? [element("p", { class: "todo" }, todo)] : []));
  }

  /** A picture from the middle, or from near there while not all is finished. */
  #showThumbnail() {
    const { links, result, source, progress } = this.job;
    if (!links.thumbnail || !source.duration_seconds || !(result || progress.segments_done)) return;
    const wanted = result ? "whole" : "part";
    if (this.#thumbnailOf === wanted) return;
    this.#thumbnailOf = wanted;
    const picture = element("img", {
      alt: "",
      decoding: "async",
      src: address(links.thumbnail, { of: "source", at_seconds: (source.duration_seconds / 2).toFixed(2) }),
      load: () => this.#parts.picture.replaceChildren(picture),
    });
  }

  async #toggle(name) {
    const wasOpen = this.#open?.name === name;
    if (this.#open) this.close();
    if (wasOpen) return;
    this.#open = { name, panel: null };
    this.#buttons[name].setAttribute("aria-expanded", "true");
    this.#actions.opened();
    const opened = this.#open;
    try {
      const { open } = await PANELS[name]();
      if (this.#open !== opened) return;
      this.#parts.panel.hidden = false;
      opened.panel = open(this.#parts.panel, this.job);
      this.#parts.panel.scrollIntoView({ block: "nearest" });
    } catch (error) {
      this.#parts.panel.hidden = false;
      this.#parts.panel.replaceChildren(element("p", { role: "alert" }, "This part of the page could not be loaded. Reload the page."));
      throw error;
    }
  }

  async #cancel() {
    const { progress, source } = this.job;
    let keep = false;
    if (progress.segments_done > 0) {
      const answer = await question(`Stop “${source.name}”?`,
        `${count(progress.frames_done, "frame")} of ${progress.frames_total.toLocaleString("en")} are done. What is finished from the start can become a video of its own.`,
        [["drop", "Stop", ""], ["keep", "Stop and keep the part that is done", "primary"]]);
      if (!answer) return;
      keep = answer === "keep";
    }
    await this.#ask("POST", "cancel", { keep_partial: keep });
  }

  async #delete() {
    const { status, source } = this.job;
    const answer = await question(`Delete “${source.name}”?`,
      ["queued", "running"].includes(status)
        ? "It is stopped, and its video, result and report are removed. This cannot be undone."
        : "Its video, result and report are removed from the service. This cannot be undone.",
      [["delete", "Delete", "danger"]]);
    if (!answer) return;
    await this.#try(() => this.#actions.remove());
  }

  #ask(method, link, body) {
    return this.#try(async () => this.#actions.changed(await askJson(method, this.job.links[link], { body })));
  }

  async #try(work) {
    try {
      await work();
    } catch (problem) {
      const { what, todo } = advice(problem);
      const { mistake } = this.#parts;
      mistake.dataset.code = "";
      mistake.hidden = false;
      mistake.replaceChildren(element("p", {}, what), ...(todo ? [element("p", { class: "todo" }, todo)] : []));
      announce(`${what} ${todo ?? ""}`);
    }
  }
}

function expired(result) {
  return result.expires_at !== null && new Date(result.expires_at) < new Date();
}

function facts({ source, result }) {
  const words = [];
  if (source.width && result) words.push(`${dimensions(source.width, source.height)} to ${dimensions(result.width, result.height)}`);
  else if (source.width) words.push(dimensions(source.width, source.height));
  if (source.duration_seconds) words.push(clock(source.duration_seconds));
  if (result) words.push(size(result.size_bytes));
  else if (source.size_bytes) words.push(size(source.size_bytes));
  return words.join(" · ");
}

function stateWords(job) {
  const { status, queue_position: position, partial_result: partial, progress } = job;
  if (status === "queued") return position ? place(position) : "Waiting";
  if (status === "running") return progress.frames_total ? (progress.frames_done >= progress.frames_total ? "Putting it together" : "Rendering") : "Looking at every frame";
  if (status === "succeeded") return `Done ${moment(job.finished_at)}`;
  if (status === "failed") return "Could not be finished";
  if (partial === "being_made") return "Stopping";
  if (partial === "kept") return "Stopped; the finished part is kept";
  if (partial === "nothing_finished") return "Stopped before anything was finished";
  if (partial === "failed") return "Stopped; the finished part could not be put together";
  return "Stopped";
}

function figureWords(progress) {
  if (!progress.frames_total) return "Counting its frames";
  const words = [`${progress.frames_done.toLocaleString("en")} of ${count(progress.frames_total, "frame")}`];
  if (progress.fps) words.push(rate(progress.fps));
  if (progress.eta_seconds != null && progress.frames_done < progress.frames_total) words.push(`about ${roughTime(progress.eta_seconds)} left`);
  words.push(`${progress.segments_done} of ${count(progress.segments_total, "segment")}`);
  return words.join(" · ");
}
