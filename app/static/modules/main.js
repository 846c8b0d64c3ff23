// What the page does when it opens.

import { tellOfConnection } from "./connection.js";
import { takeFiles } from "./drop.js";
import { Jobs } from "./jobs.js";
import { askForKey, sessionOf } from "./session.js";
import { Tray } from "./tray.js";
import { Uploads } from "./uploads.js";

const TRY_AGAIN_MS = 3000;

tellOfConnection(askForKey);

const jobs = new Jobs();
const uploads = new Uploads((job, upload) => jobs.add(job, upload));
const tray = new Tray((chosen, options) => uploads.start(chosen, options));
takeFiles((files) => tray.add(files));
const openSession = sessionOf({
  begin() {
    untilAnswered(() => jobs.begin());
    uploads.showLeftOver();
  },
  leave: () => uploads.forgetLeftOver(),
});
await untilAnswered(openSession);
document.documentElement.dataset.ready = "";
performance.mark("interactive");

/** A page that was opened while the service starts need not be opened again. */
async function untilAnswered(work) {
  for (;;) {
    try {
      return await work();
    } catch (problem) {
      if (!problem.mayPass) throw problem;
      await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN_MS));
    }
  }
}
