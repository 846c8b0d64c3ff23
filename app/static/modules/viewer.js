// Before and after, playing together; where the browser plays one of them not, as pictures of one moment at a time.

import { address } from "./api.js";
import { element, write } from "./elements.js";
import { NotPlayableError, streamOf, videoOf } from "./media.js";
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
  #closed = false;
  #timer = null;
  #shownMoment = null;
  #play = element("button", { type: "button", hidden: true, click: () => this.#playback.toggle() }, "Play");
  #sound = element("button", { type: "button", class: "plain", hidden: true, "aria-pressed": "false", click: () => this.#toggleSound() }, "Sound");
  #time = element("input", { type: "range", min: 0, max: 1, step: "any", value: 0, "aria-label": "Time", disabled: true, input: () => this.#seek(Number(this.#time.value)) });
  #clock = element("span", { class: "clock" });
  #said = element("p", { class: "hint said", role: "status" });

  /**
   * `given`: {size, frameSeconds, durationSeconds, beforeUrl, afterUrl or streamUrl, thumbnail, offsetSeconds = 0,
   * atSeconds = 0}. `thumbnail`: the link that pictures come from. `offsetSeconds`: where in the source the result begins.
   */
  constructor(given) {
    this.#given = { offsetSeconds: 0, atSeconds: 0, ...given };
    this.#stage = new Stage(given.size, (event) => this.#key(event));
    this.element = element("div", { class: "viewer" },
      this.#stage.picture,
      element("div", { class: "controls" }, this.#play, this.#time, this.#clock, this.#sound, this.#stage.zoomChoice),
      this.#said,
      this.#stage.help);
    this.#load();
  }

  get seconds() {
    return this.#playback ? this.#playback.seconds : Number(this.#time.value);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#playback?.close();
    this.#stage.close();
    for (const one of this.#media) one.close();
  }

  async #load() {
    const { beforeUrl, afterUrl, streamUrl, thumbnail } = this.#given;
    write(this.#said, "Loading…");
    const [after, before] = await Promise.allSettled([
      afterUrl ? videoOf(afterUrl) : streamUrl ? streamOf(streamUrl) : Promise.reject(new NotPlayableError()),
      beforeUrl ? videoOf(beforeUrl) : Promise.reject(new NotPlayableError()),
    ]);
    this.#media = [after, before].filter((one) => one.status === "fulfilled").map((one) => one.value);
    if (this.#closed) {
      this.close();
      return;
    }
    if (after.status === "fulfilled" && (before.status === "fulfilled" || !thumbnail)) this.#showVideos(after.value.video, before.value?.video ?? null);
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
    this.#sound.hidden = false;
    this.#time.disabled = false;
    write(this.#said, before ? "" : "This browser does not play the source, so there is nothing to compare with.");
    this.#playback.seek(atSeconds);
    this.#tell();
  }

  #showPictures() {
    const { durationSeconds, atSeconds } = this.#given;
    write(this.#said, "This browser does not play both videos, so they are shown as single pictures.");
    this.#time.disabled = false;
    this.#time.max = durationSeconds;
    this.#time.step = this.#given.frameSeconds;
    this.#seek(atSeconds || durationSeconds / 2);
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

  /** Both at once, so that never two moments are compared. */
  async #picture(moment) {
    this.#shownMoment = moment;
    const load = async (of) => {
      const image = element("img", { alt: "", src: address(this.#given.thumbnail, { of, at_seconds: moment.toFixed(3) }) });
      await image.decode();
      return image;
    };
    const [before, after] = await Promise.all(["source", "result"].map((of) => load(of).catch(() => null)));
    if (this.#closed || this.#shownMoment !== moment) return;
    if (!after && !before) {
      write(this.#said, "There is no picture of this moment yet. Try another, or come back in a while.");
      return;
    }
    if (after) this.#stage.resize({ width: after.naturalWidth, height: after.naturalHeight });
    this.#stage.show(before, after ?? before.cloneNode());
    write(this.#said, after ? "This browser does not play both videos, so they are shown as single pictures." : "This moment is not rendered yet: both sides show the source.");
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
    this.#after.muted = !this.#after.muted;
    this.#sound.setAttribute("aria-pressed", String(!this.#after.muted));
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
