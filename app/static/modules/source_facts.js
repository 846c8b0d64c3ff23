// What the browser itself can tell of a chosen file, before a byte of it is sent.

const PATIENCE_MS = 4000;
const LOOK_MS = 1500;
const USUAL_FRAME_RATE = 30;
const POSTER_WIDTH = 320;

/** {width, height, durationSeconds, frameRate, poster}: `poster` is the address of a small picture. Null for a file that this browser does not play. */
export async function factsOf(file) {
  const url = URL.createObjectURL(file);
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  video.preload = "auto";
  try {
    const isReadable = await settled(video, url);
    if (!isReadable || !video.videoWidth || !Number.isFinite(video.duration)) return null;
    const frameRate = (await frameRateOf(video)) ?? USUAL_FRAME_RATE;
    return {
      width: video.videoWidth,
      height: video.videoHeight,
      durationSeconds: video.duration,
      frameRate,
      poster: await posterOf(video), // after the look: many a film begins in black
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

/** As long as the page is open. */
async function posterOf(video) {
  const canvas = document.createElement("canvas");
  canvas.width = POSTER_WIDTH;
  canvas.height = Math.round((POSTER_WIDTH * video.videoHeight) / video.videoWidth);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
  return blob && URL.createObjectURL(blob);
}
