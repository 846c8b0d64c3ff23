// News of jobs: events for the two that matter most, bulk questions for the rest. A browser opens six connections to a
// host and no more, and videos and uploads want some of them.

import { address, askJson, heard } from "./api.js";

const EVENT_SOURCES = 2;
const ASK_EVERY_MS = 2000;
const TRY_EVENTS_AGAIN_MS = 30000;
const MOST_AT_ONCE = 100;

export class Live {
  #sources = new Map(); // job id -> EventSource
  #withoutEvents = new Map(); // job id -> when events may be tried again
  #wanted = [];
  #onJob;
  #onGone;
  #timer = null;

  /** `onJob(job)` for each news; `onGone(id)` when the service knows the job no more. */
  constructor(onJob, onGone) {
    this.#onJob = onJob;
    this.#onGone = onGone;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#ask();
    });
    addEventListener("online", () => this.#ask());
  }

  /** Jobs that are not at their end yet, the most wanted first. */
  follow(jobs) {
    this.#wanted = jobs;
    const now = Date.now();
    const chosen = jobs.filter((job) => job.links.events && now > (this.#withoutEvents.get(job.id) ?? 0)).slice(0, EVENT_SOURCES);
    for (const [id, source] of this.#sources) {
      if (chosen.some((job) => job.id === id)) continue;
      source.close();
      this.#sources.delete(id);
    }
    for (const job of chosen) if (!this.#sources.has(job.id)) this.#open(job);
    this.#askSoon();
  }

  #open(job) {
    const source = new EventSource(address(job.links.events));
    const take = (event) => this.#onJob(JSON.parse(event.data));
    source.addEventListener("open", heard);
    source.addEventListener("status", take);
    source.addEventListener("progress", take);
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return; // the browser connects again by itself
      this.#sources.delete(job.id);
      this.#withoutEvents.set(job.id, Date.now() + TRY_EVENTS_AGAIN_MS);
      this.follow(this.#wanted);
    });
    this.#sources.set(job.id, source);
  }

  #askSoon() {
    if (this.#timer || !this.#unheard().length) return;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#ask();
    }, ASK_EVERY_MS);
  }

  /** Jobs of which no open stream tells. */
  #unheard() {
    return this.#wanted.filter((job) => this.#sources.get(job.id)?.readyState !== EventSource.OPEN).slice(0, MOST_AT_ONCE);
  }

  async #ask() {
    const ids = this.#unheard().map((job) => job.id);
    if (ids.length && !document.hidden) {
      try {
        const { jobs } = await askJson("GET", "v1/jobs", { query: { id: ids } });
        for (const job of jobs) if (ids.includes(job.id)) this.#onJob(job);
        for (const id of ids) if (!jobs.some((job) => job.id === id)) this.#onGone(id);
      } catch {
        // Asked again; the banner says that the service does not answer.
      }
    }
    this.#askSoon();
  }
}
