// Before and after, playing together; where the browser plays one of them not, as pictures of one moment at a time.

import { element, write } from "./elements.js";
import { NotPlayableError, pictureOf, streamOf, videoOf } from "./media.js";
import { Playback } from "./playback.js";
import { Stage } from "./stage.js";
import { clock } from "./words.js";

const SETTLE_MS = 120;

export class Viewer {
  #given;
  #stage;
  #media = [];
  #playback = null;
  #after = null;
  #sounding = null; // which of the two is heard
  #closing = new AbortController();
  #timer = null;
  #shownMoment = null;
  #play = element("button", { type: "button", hidden: true, click: () => this.#playback.toggle() }, "Play");
  #sound = element("button", { type: "button", class: "plain", hidden: true, "aria-pressed": "false", click: () => this.#toggleSound() }, "Sound");
  #pictures = element("button", { type: "button", hidden: true, click: () => this.#leaveVideo() }, "Compare single pictures");
  #time = element("input", { type: "range", min: 0, max: 1, step: "any", value: 0, "aria-label": "Time", disabled: true, input: () => this.#seek(Number(this.#time.value)) });
  #clock = element("span", { class: "clock" });
  #said = element("p", { class: "hint said", role: "status" });

  /**
   * `given`: {size, frameSeconds, durationSeconds, beforeUrl, afterUrl or streamUrl, thumbnail, offsetSeconds = 0,
   * atSeconds}. `thumbnail`: the link that pictures come from. `offsetSeconds`: where in the source the result begins.
   */
  constructor(given) {
    this.#given = { offsetSeconds: 0, ...given };
    this.#stage = new Stage(given.size, (event) => this.#key(event));
    this.element = element("div", { class: "viewer" },
      this.#stage.picture,
      element("div", { class: "controls" }, this.#play, this.#time, this.#clock, this.#sound, this.#stage.zoomChoice),
      element("div", { class: "row" }, this.#said, this.#pictures),
      this.#stage.help);
    this.#load();
  }

  get seconds() {
    return this.#playback ? this.#playback.seconds : Number(this.#time.value);
  }

  close() {
    this.#closing.abort();
    clearTimeout(this.#timer);
    this.#playback?.close();
    this.#stage.close();
    for (const one of this.#media) one.close();
  }

  async #load() {
    const { beforeUrl, afterUrl, streamUrl, thumbnail } = this.#given;
    write(this.#said, streamUrl ? "Loading what is finished so far…" : "Loading…");
    const [after, before] = await Promise.allSettled([
      afterUrl ? videoOf(afterUrl) : streamUrl ? streamOf(streamUrl, this.#closing.signal) : Promise.reject(new NotPlayableError()),
      beforeUrl ? videoOf(beforeUrl) : Promise.reject(new NotPlayableError()),
    ]);
    this.#media = [after, before].filter((one) => one.status === "fulfilled").map((one) => one.value);
    if (this.#closing.signal.aborted) {
      this.close();
      return;
    }
    if (after.status === "fulfilled") this.#showVideos(after.value.video, before.value?.video ?? null);
    else if (thumbnail) this.#showPictures();
    else write(this.#said, "This browser plays neither of them. Download the video to see it.");
  }

  #showVideos(after, before) {
    const { offsetSeconds, atSeconds } = this.#given;
    this.#after = after;
    after.muted = true;
    this.#stage.resize({ width: after.videoWidth, height: after.videoHeight });
    this.#stage.show(before, after);
    this.#playback = new Playback(after, before, offsetSeconds, () => this.#tell());
    this.#play.hidden = false;
    // The stream of what is finished has no sound of its own.
    this.#sounding = this.#given.streamUrl ? before : after;
    this.#sound.hidden = this.#sounding === null;
    this.#time.disabled = false;
    write(this.#said, before ? "" : "This browser plays the result, but not its source.");
    this.#pictures.hidden = before !== null || !this.#given.thumbnail;
    this.#playback.seek(atSeconds ?? 0);
    this.#tell();
  }

  #leaveVideo() {
    const { seconds } = this.#playback;
    this.#playback.close();
    this.#playback = null;
    for (const control of [this.#play, this.#sound, this.#pictures]) control.hidden = true;
    this.#given.atSeconds = seconds;
    this.#showPictures();
    this.#time.focus();
  }

  #showPictures() {
    const { durationSeconds, atSeconds } = this.#given;
    write(this.#said, "This browser does not play both videos, so they are shown as single pictures, one for every few seconds.");
    this.#time.disabled = false;
    this.#time.max = durationSeconds;
    this.#time.step = this.#given.frameSeconds;
    this.#seek(atSeconds ?? durationSeconds / 2);
  }

  #seek(seconds) {
    if (this.#playback) {
      this.#playback.seek(seconds);
      return;
    }
    const { durationSeconds, frameSeconds } = this.#given;
    const moment = Math.max(0, Math.min(seconds, durationSeconds - frameSeconds / 2));
    this.#time.value = moment;
    write(this.#clock, `${clock(moment, true)} / ${clock(durationSeconds)}`);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#picture(moment), SETTLE_MS);
  }

  /** Both at once, so that never two moments are compared; of the moment that both are of. */
  async #picture(moment) {
    this.#shownMoment = moment;
    const { thumbnail, offsetSeconds, durationSeconds } = this.#given;
    const [before, after] = await Promise.all(["source", "result"].map((of) => pictureOf(thumbnail, of, moment + offsetSeconds)));
    if (this.#closing.signal.aborted || this.#shownMoment !== moment) return;
    if (!after || before?.atSeconds !== after.atSeconds) {
      write(this.#said, "There is no picture yet. Come back when the first segment is finished.");
      return;
    }
    this.#stage.resize({ width: after.image.naturalWidth, height: after.image.naturalHeight });
    this.#stage.show(before.image, after.image);
    const shown = Math.max(0, after.atSeconds - offsetSeconds);
    this.#time.value = shown;
    write(this.#clock, `${clock(shown, true)} / ${clock(durationSeconds)}`);
    this.#time.setAttribute("aria-valuetext", clock(shown, true));
  }

  #tell() {
    const { seconds, isPlaying } = this.#playback;
    const { duration, seekable } = this.#after;
    const end = Number.isFinite(duration) ? duration : seekable.length ? seekable.end(seekable.length - 1) : 0;
    this.#time.max = end;
    this.#time.value = seconds;
    const soFar = this.#given.streamUrl ? " finished" : "";
    write(this.#clock, `${clock(seconds)} / ${clock(end)}${soFar}`);
    this.#time.setAttribute("aria-valuetext", `${clock(seconds)} of ${clock(end)}`);
    write(this.#play, isPlaying ? "Pause" : "Play");
  }

  #toggleSound() {
    this.#sounding.muted = !this.#sounding.muted;
    this.#sound.setAttribute("aria-pressed", String(!this.#sounding.muted));
  }

  /** Whether the key was taken. */
  #key(event) {
    const step = { ",": -1, ".": 1 }[event.key];
    if (step) this.#seek(this.seconds + step * this.#given.frameSeconds);
    else if (event.key === " " && this.#playback) this.#playback.toggle();
    else return false;
    return true;
  }
}

/** Seconds of one frame, by the average rate that the service tells as a fraction. */
export function frameSeconds(source) {
  const [numerator, denominator = 1] = (source.frame_rate ?? "25").split("/").map(Number);
  return numerator > 0 ? denominator / numerator : 1 / 25;
}
