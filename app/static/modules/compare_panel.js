// A card's panel: the result beside its source. While the job runs, what is finished so far.

import { address } from "./api.js";
import { Viewer, frameSeconds } from "./viewer.js";

export function open(container, job) {
  let shown = job;
  let viewer = show(container, job);
  return {
    update(now) {
      if (Boolean(shown.result) === Boolean(now.result)) return;
      shown = now;
      const seconds = viewer.seconds;
      viewer.close();
      viewer = show(container, now, seconds);
    },
    close: () => viewer.close(),
  };
}

function show(container, job, atSeconds) {
  const { links, result, source } = job;
  const viewer = new Viewer({
    size: result ?? { width: source.width * 2, height: source.height * 2 },
    frameSeconds: frameSeconds(source),
    durationSeconds: source.duration_seconds,
    beforeUrl: links.source ? address(links.source) : null,
    afterUrl: result && result.container !== "zip" ? address(links.result) : null,
    streamUrl: !result && links.stream ? address(links.stream) : null,
    thumbnail: links.thumbnail,
    atSeconds,
  });
  container.replaceChildren(viewer.element);
  return viewer;
}
