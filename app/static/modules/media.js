// Getting a video into a <video>: a file, or the stream of what is finished so far.

import { ask } from "./api.js";
import { element } from "./elements.js";

const PATIENCE_MS = 15000;
const ASK_AGAIN_MS = 1500;
const LIBRARY = "../vendor/hls.js-1.7.4/hls.light.min.mjs";

export class NotPlayableError extends Error {}

/** A <video> that can be shown. Raises `NotPlayableError` if this browser does not play it. */
export async function videoOf(url) {
  const video = blank();
  await ready(video, () => { video.src = url; });
  return { video, close: () => empty(video) };
}

/** The same of an HLS playlist that may still grow, or not have begun. Given up when `signal` says so. */
export async function streamOf(url, signal) {
  await begun(url, signal);
  const video = blank();
  const { default: Hls } = await import(LIBRARY);
  if (!Hls.isSupported()) { // Safari on a phone plays it by itself
    await ready(video, () => { video.src = url; });
    return { video, close: () => empty(video) };
  }
  const hls = new Hls({ startPosition: 0, enableWorker: false, backBufferLength: 60, manifestLoadingMaxRetry: 1 });
  const close = () => {
    hls.destroy();
    empty(video);
  };
  try {
    await ready(video, (fail) => {
      hls.on(Hls.Events.ERROR, (_, problem) => {
        if (problem.fatal) fail();
      });
      hls.loadSource(url);
      hls.attachMedia(video);
    });
  } catch (error) {
    close();
    throw error;
  }
  return { video, close };
}

async function begun(url, signal) {
  for (;;) {
    try {
      await ask("GET", url, { signal });
      return;
    } catch (problem) {
      if (signal.aborted || problem.code !== "nothing_finished") throw new NotPlayableError(problem.message);
    }
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
  }
}

/** The frame of one moment: {image, atSeconds}, of the nearest moment that there is. Null where there is none. */
export async function pictureOf(thumbnail, of, atSeconds) {
  try {
    const answer = await ask("GET", thumbnail, { query: { of, at_seconds: atSeconds.toFixed(3) } });
    const url = URL.createObjectURL(await answer.blob());
    const image = element("img", { alt: "", src: url });
    await image.decode();
    URL.revokeObjectURL(url);
    return { image, atSeconds: Number(answer.headers.get("VSR-At-Seconds") ?? atSeconds) };
  } catch {
    return null;
  }
}

function blank() {
  return element("video", { playsinline: true, preload: "auto", tabindex: -1, "aria-hidden": "true" });
}

function empty(video) {
  video.removeAttribute("src");
  video.load();
}

function ready(video, begin) {
  return new Promise((resolve, reject) => {
    const fail = () => reject(new NotPlayableError("This browser does not play it."));
    // A codec that is unknown to the browser may leave sound without a picture.
    video.addEventListener("loadeddata", () => (video.videoWidth ? resolve() : fail()), { once: true });
    video.addEventListener("error", fail, { once: true });
    setTimeout(fail, PATIENCE_MS);
    begin(fail);
  });
}
