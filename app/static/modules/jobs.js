// The list of one's jobs, newest first, kept up to date.

import { announce } from "./announce.js";
import { ask, askJson } from "./api.js";
import { Card } from "./card.js";
import { Live } from "./live.js";
import { place } from "./words.js";

const PAGE = 20;

export class Jobs {
  #list = document.getElementById("jobs");
  #empty = document.getElementById("empty");
  #older = document.getElementById("older");
  #cards = new Map(); // job id -> Card
  #cursor = null;
  #live = new Live((job) => this.#receive(job), (id) => this.#remove(id));

  constructor() {
    this.#older.addEventListener("click", () => this.#showOlder());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && !document.getElementById("work").hidden) this.#page(null).catch(() => {}); // made elsewhere meanwhile
    });
  }

  async begin() {
    const { next_cursor: cursor } = await this.#page(null);
    this.#offer(cursor);
    this.#showEmpty();
  }

  /** A job that was just made of an upload, whose card may have had the focus. */
  add(job, { poster, hadFocus }) {
    this.#receive(job, poster);
    if (hadFocus) this.#cards.get(job.id).focus();
    announce(`${job.source.name} has arrived. ${job.queue_position ? place(job.queue_position) : "It starts now"}.`);
  }

  async #showOlder() {
    const { jobs, next_cursor: cursor } = await this.#page(this.#cursor);
    this.#offer(cursor);
    if (jobs.length) this.#cards.get(jobs[0].id).focus();
  }

  #offer(cursor) {
    this.#cursor = cursor;
    this.#older.hidden = !cursor;
  }

  async #page(cursor) {
    const page = await askJson("GET", "v1/jobs", { query: { limit: PAGE, cursor } });
    for (const job of page.jobs) this.#receive(job);
    return page;
  }

  #receive(job, poster = null) {
    const card = this.#cards.get(job.id);
    if (card) {
      const before = card.job;
      card.update(job);
      tell(before, job);
    } else {
      const made = new Card(job, poster, {
        changed: (changed) => this.#receive(changed),
        remove: () => this.#delete(job.id),
        opened: () => this.#follow(),
      });
      this.#cards.set(job.id, made);
      // The newest first: ids are in the order in which jobs were made.
      const older = [...this.#cards.values()].filter((one) => one.job.id < job.id).sort((a, b) => (a.job.id < b.job.id ? 1 : -1))[0];
      this.#list.insertBefore(made.element, older?.element ?? null);
      this.#showEmpty();
    }
    this.#follow();
  }

  #follow() {
    const unsettled = [...this.#cards.values()].filter((card) => !card.isSettled);
    const weight = (card) => (card.isOpen ? 4 : 0) + (card.job.status === "running" ? 2 : 0);
    this.#live.follow(unsettled.sort((a, b) => weight(b) - weight(a) || (a.job.id < b.job.id ? -1 : 1)).map((card) => card.job));
  }

  async #delete(id) {
    const card = this.#cards.get(id);
    await ask("DELETE", card.job.links.self);
    announce(`${card.job.source.name} is deleted.`);
    const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
    this.#remove(id);
    const neighbour = [...this.#cards.values()].find((one) => one.element === next);
    if (neighbour) neighbour.focus();
    else document.getElementById("videos").focus();
  }

  #remove(id) {
    this.#cards.get(id)?.close();
    this.#cards.get(id)?.element.remove();
    this.#cards.delete(id);
    this.#showEmpty();
    this.#follow();
  }

  #showEmpty() {
    this.#empty.hidden = this.#cards.size > 0;
    document.body.classList.toggle("has-videos", this.#cards.size > 0);
  }
}

function tell(before, now) {
  if (before.status === now.status) return;
  const name = now.source.name;
  if (now.status === "running") announce(`${name}: rendering has begun.`);
  if (now.status === "succeeded") announce(`${name} is done and can be downloaded.`);
  if (now.status === "failed") announce(`${name} could not be finished. ${now.error?.message ?? ""}`);
  if (now.status === "canceled") announce(`${name} is stopped.`);
}
