// What the browser itself can tell of a chosen file, before a byte of it is sent.

const PATIENCE_MS = 4000;
const LOOK_MS = 1500;
const USUAL_FRAME_RATE = 30;

/** {width, height, durationSeconds, frameRate}; null for a file that this browser does not play. */
export async function factsOf(file) {
  const url = URL.createObjectURL(file);
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  video.preload = "auto";
  try {
    const isReadable = await settled(video, url);
    if (!isReadable || !video.videoWidth || !Number.isFinite(video.duration)) return null;
    return {
      width: video.videoWidth,
      height: video.videoHeight,
      durationSeconds: video.duration,
      frameRate: (await frameRateOf(video)) ?? USUAL_FRAME_RATE,
    };
  } finally {
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(url);
  }
}

function settled(video, url) {
  return new Promise((resolve) => {
    video.addEventListener("loadeddata", () => resolve(true), { once: true });
    video.addEventListener("error", () => resolve(false), { once: true });
    setTimeout(() => resolve(false), PATIENCE_MS);
    video.src = url;
  });
}

/** By playing it, unseen and unheard, for a few frames: no browser simply says it. */
async function frameRateOf(video) {
  if (!("requestVideoFrameCallback" in video)) return null;
  const times = [];
  const looked = new Promise((resolve) => {
    const note = (_, frame) => {
      times.push(frame.mediaTime);
      if (times.length < 12) video.requestVideoFrameCallback(note);
      else resolve();
    };
    video.requestVideoFrameCallback(note);
    video.addEventListener("ended", resolve, { once: true });
    setTimeout(resolve, LOOK_MS);
  });
  try {
    await video.play();
  } catch {
    return null;
  }
  await looked;
  video.pause();
  const steps = times.slice(1).map((time, index) => time - times[index]).filter((step) => step > 1e-4).sort((a, b) => a - b);
  // The lower quarter: a browser that is busy skips frames, and none are shown too early.
  return steps.length ? Math.round(100 / steps[Math.floor(steps.length / 4)]) / 100 : null;
}
