// Sending videos, one after the other. What has arrived stays: a cut connection, or a closed page, goes on from there.

import { announce } from "./announce.js";
import { address, ask, askJson, problemOf } from "./api.js";
import { advice } from "./advice.js";
import { element, smallPicture, write } from "./elements.js";
import { held, hold } from "./holds.js";
import { roughTime, size } from "./words.js";

const LIBRARY = "page/vendor/tus-js-client-4.3.1/tus.min.js";
const REMEMBERED_AS = "tus::"; // by the library, in the browser's local storage
const RETRY_DELAYS_MS = [0, 500, 1500, 3000];
const ASK_AGAIN_MS = 4000;
const RATE_MEMORY_SECONDS = 4;

export class Uploads {
  #list = document.getElementById("uploads");
  #leftOver = document.getElementById("left-over");
  #waiting = [];
  #current = null;
  #onJob;
  #client = null;

  /** `onJob(job, {poster, hadFocus})`: a video has arrived and is a job now. */
  constructor(onJob) {
    this.#onJob = onJob;
    addEventListener("online", () => this.#current?.goOn());
    addEventListener("beforeunload", (event) => {
      if (this.#current || this.#waiting.length) event.preventDefault();
    });
  }

  /** `chosen`: [{file, poster}]. */
  async start(chosen, options) {
    for (const { file, poster } of chosen) {
      const upload = new Upload(file, poster, options, { onEnd: (job, hadFocus) => this.#ended(upload, job, hadFocus), onRetry: () => this.#queue(upload) });
      this.#list.append(upload.card);
      this.#queue(upload);
    }
    await this.showLeftOver();
  }

  /** Uploads that a closed page has left unfinished: the browser lets no page open their files again by itself. */
  async showLeftOver() {
    if (!remembered().length) {
      this.#leftOver.replaceChildren(); // and the library need not be loaded
      return;
    }
    const tus = await this.#tus().catch(() => null);
    if (!tus) return;
    const urlStorage = tus.defaultOptions.urlStorage;
    const underWay = [this.#current, ...this.#waiting].filter(Boolean).map((upload) => upload.file.name);
    const elsewhere = await held();
    const remains = (await urlStorage.findAllUploads())
      .filter((one) => one.metadata?.filename && !underWay.includes(one.metadata.filename) && !elsewhere.has(one.uploadUrl));
    const areThere = await Promise.all(remains.map((one) => isThere(one.uploadUrl)));
    for (const gone of remains.filter((_, index) => !areThere[index])) await urlStorage.removeUpload(gone.urlStorageKey);
    const found = remains.filter((_, index) => areThere[index]);
    this.#leftOver.replaceChildren(...found.map((one) => element("li", {},
      element("p", {}, element("strong", {}, one.metadata.filename), " was not sent to its end. Choose the same file again, and it goes on from there."),
      element("button", { type: "button", class: "plain", "aria-label": `Forget ${one.metadata.filename}`, click: async () => {
        const giveBack = await hold(one.uploadUrl);
        if (giveBack) { // else another tab has taken it up since
          await urlStorage.removeUpload(one.urlStorageKey);
          ask("DELETE", one.uploadUrl, { headers: { "Tus-Resumable": "1.0.0" } }).catch(() => {}).finally(giveBack);
        }
        await this.showLeftOver();
        document.getElementById("videos").focus();
      } }, "Forget it"))));
  }

  /** Whoever comes next need not know the names of the files. */
  forgetLeftOver() {
    for (const key of remembered()) localStorage.removeItem(key);
  }

  #queue(upload) {
    this.#waiting.push(upload);
    this.#next();
  }

  async #next() {
    if (this.#current || !this.#waiting.length) return;
    const upload = this.#waiting.shift();
    this.#current = upload;
    try {
      await upload.send(await this.#tus());
    } catch {
      upload.fail({ code: "unreachable", message: "A part of this page could not be loaded." });
    }
  }

  #ended(upload, job, hadFocus) {
    this.#waiting = this.#waiting.filter((one) => one !== upload);
    if (this.#current === upload) this.#current = null;
    if (job) this.#onJob(job, { poster: upload.poster, hadFocus });
    this.#next();
  }

  /** Loaded when first needed. */
  #tus() {
    this.#client ??= new Promise((resolve, reject) => {
      document.head.append(element("script", { src: address(LIBRARY), load: () => resolve(globalThis.tus), error: () => { this.#client = null; reject(new Error("not loaded")); } }));
    });
    return this.#client;
  }
}

/** Whether something of an upload is left: it may have expired, or be a job of which a closed page never heard. */
async function isThere(uploadUrl) {
  try {
    await ask("HEAD", uploadUrl, { headers: { "Tus-Resumable": "1.0.0" } });
    return true;
  } catch (problem) {
    return ![404, 410].includes(problem.status);
  }
}

/** The names of what the library remembers; a browser may deny it its storage. */
function remembered() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(REMEMBERED_AS));
  } catch {
    return [];
  }
}

class Upload {
  #tusUpload = null;
  #options;
  #events;
  #timer = null;
  #held = null; // {url, giveBack: a promise}: this tab's alone
  #isStopped = false; // looked at after every wait: what was begun before may come about after
  #mayBeJob = false; // a job was asked for, and whether it was made is not known
  #arrivedId = null; // from then on only the job is asked for: the library would not find the upload, and send it again
  #samples = [];
  #bar;
  #state = element("p", { class: "state" }, "Waiting for its turn");
  #figures = element("p", { class: "figures" });
  #mistake = element("div", { class: "mistake", hidden: true });
  #retry;

  constructor(file, poster, options, events) {
    this.file = file;
    this.poster = poster;
    this.#options = options;
    this.#events = events;
    this.#bar = element("progress", { max: 1, value: 0, "aria-label": `Upload of ${file.name}` });
    this.#retry = element("button", { type: "button", hidden: true, click: () => this.#tryAgain() }, "Try again");
    this.card = element("li", { class: "card upload" },
      element("div", { class: "head" }, smallPicture(poster),
        element("div", { class: "title" }, element("h3", { tabindex: -1 }, file.name), this.#state)),
      this.#bar,
      this.#figures,
      this.#mistake,
      element("div", { class: "row" }, this.#retry,
        element("button", { type: "button", "aria-label": `Stop the upload of ${file.name}`, click: () => this.#stop() }, "Stop")));
  }

  async send(tus) {
    if (this.#isStopped) return;
    if (this.#arrivedId) {
      await this.#submit();
      return;
    }
    this.#show("Uploading");
    if (!this.#tusUpload?.url || !(await this.#take(this.#tusUpload.url))) await this.#prepare(tus);
    if (this.#isStopped) this.#giveBack();
    else this.#tusUpload.start();
  }

  /** Goes on with what a closed page has left of the file, if no other tab does. */
  async #prepare(tus) {
    this.#tusUpload = new tus.Upload(this.file, {
      endpoint: address("v1/uploads"),
      metadata: { filename: this.file.name, filetype: this.file.type },
      retryDelays: RETRY_DELAYS_MS,
      removeFingerprintOnSuccess: false, // it is a job only when the service has said so
      onBeforeRequest: (request) => this.#holdBack(request),
      onUploadUrlAvailable: () => this.#take(this.#tusUpload.url),
      onProgress: (sent, total) => this.#progress(sent, total),
      onSuccess: () => {
        this.#arrivedId = this.#tusUpload.url.split("/").pop();
        this.#submit();
      },
      onError: (error) => this.#cut(error),
    });
    for (const previous of await this.#tusUpload.findPreviousUploads()) {
      if (!(await this.#take(previous.uploadUrl))) continue;
      this.#tusUpload.resumeFromPreviousUpload(previous);
      return;
    }
  }

  /** Whether no other tab, and no other upload of this one, is at it. */
  async #take(url) {
    if (this.#held?.url !== url) {
      this.#giveBack();
      this.#held = { url, giveBack: Promise.resolve(hold(url)) };
    }
    return (await this.#held.giveBack) !== null;
  }

  #giveBack() {
    this.#held?.giveBack.then((giveBack) => giveBack?.());
    this.#held = null;
  }

  /** The library forgets an `abort` that comes before its first request. */
  #holdBack(request) {
    if (!this.#isStopped || request.getMethod() === "DELETE") return;
    this.#tusUpload.abort();
    throw new Error("stopped");
  }

  /** The connection is said to be back. */
  goOn() {
    if (!this.#timer) return;
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#arrivedId) this.#submit();
    else this.#tusUpload.start();
  }

  fail(problem) {
    if (this.#isStopped) return;
    this.card.classList.add("failed");
    this.#show("Not sent");
    const { what, todo } = advice(problem);
    this.#mistake.replaceChildren(element("p", {}, what), todo ? element("p", { class: "todo" }, todo) : "");
    this.#mistake.hidden = false;
    this.#retry.hidden = false;
    write(this.#figures, "");
    announce(`${this.file.name} was not sent. ${what} ${todo ?? ""}`);
    this.#giveBack();
    this.#events.onEnd(null);
  }

  #progress(sent, total) {
    this.#bar.value = total ? sent / total : 0;
    const now = performance.now() / 1000;
    this.#samples = [...this.#samples.filter((one) => now - one.at < RATE_MEMORY_SECONDS), { at: now, sent }];
    const [first] = this.#samples;
    const perSecond = now - first.at > 0.5 ? (sent - first.sent) / (now - first.at) : 0;
    this.#show("Uploading");
    const left = perSecond > 0 && sent < total ? ` · about ${roughTime((total - sent) / perSecond)} left` : "";
    write(this.#figures, `${size(sent)} of ${size(total)}${perSecond > 0 ? ` · ${size(perSecond)} a second` : ""}${left}`);
  }

  #cut(error) {
    if (this.#isStopped) return;
    const answer = error.originalResponse;
    const problem = answer ? problemOf(answer.getStatus(), answer.getBody(), (name) => answer.getHeader(name)) : null;
    if (problem && !problem.mayPass) {
      this.fail(problem);
      return;
    }
    if (!this.#state.textContent.startsWith("Connection")) announce(`The connection is lost. ${this.file.name} goes on when it is back.`);
    this.#samples = [];
    this.#show("Connection lost");
    write(this.#figures, `${size(this.#bar.value * this.file.size)} of ${size(this.file.size)} are safe. It goes on by itself.`);
    this.#timer = setTimeout(() => this.goOn(), problem?.retryAfterSeconds ? problem.retryAfterSeconds * 1000 : ASK_AGAIN_MS);
  }

  async #submit() {
    if (this.#isStopped && !this.#mayBeJob) return;
    this.#bar.value = 1;
    this.#show("Arrived");
    try {
      this.#mayBeJob = true;
      const job = await askJson("POST", "v1/jobs", {
        body: { upload_id: this.#arrivedId, filename: this.file.name, ...this.#options },
        headers: { "Idempotency-Key": `page-${this.#arrivedId}` }, // an answer that got lost is asked for again
      });
      await this.#forget();
      this.#giveBack();
      if (this.#isStopped) {
        await ask("DELETE", job.links.self);
        return;
      }
      const hadFocus = this.card.contains(document.activeElement);
      this.card.remove();
      this.#events.onEnd(job, hadFocus);
    } catch (problem) {
      this.#mayBeJob = problem.mayPass && problem.status !== 429;
      if (this.#isStopped && !this.#mayBeJob) return;
      if (problem.mayPass) {
        this.#show({ 409: "Arrived", 429: "Waiting for room" }[problem.status] ?? "Connection lost");
        write(this.#figures, problem.message);
        this.#timer = setTimeout(() => this.goOn(), (problem.retryAfterSeconds ?? ASK_AGAIN_MS / 1000) * 1000);
        return;
      }
      if (problem.code === "upload_not_found") this.#arrivedId = null; // it has expired, and was no job: it is sent again
      this.fail(problem);
    }
  }

  /** Another tab may be sending the same file: what it remembers stays. */
  async #forget() {
    const { urlStorage } = this.#tusUpload.options;
    for (const one of await this.#tusUpload.findPreviousUploads()) {
      if (one.uploadUrl === this.#tusUpload.url) await urlStorage.removeUpload(one.urlStorageKey);
    }
  }

  #tryAgain() {
    this.card.classList.remove("failed");
    this.#mistake.hidden = true;
    this.#retry.hidden = true;
    this.card.querySelector("h3").focus();
    this.#events.onRetry();
  }

  async #stop() {
    if (this.#isStopped) return;
    this.#isStopped = true;
    if (!this.#mayBeJob) clearTimeout(this.#timer); // else it is found out, and deleted
    this.card.remove();
    document.getElementById("videos").focus();
    announce(`${this.file.name} is not sent.`);
    this.#events.onEnd(null);
    if (!this.#tusUpload) return;
    await this.#tusUpload.abort(true).catch(() => {});
    await this.#forget();
    this.#giveBack();
  }

  #show(words) {
    write(this.#state, words);
  }
}
