// A card's panel: the report of a finished job, for people.

import { advice } from "./advice.js";
import { askJson } from "./api.js";
import { element } from "./elements.js";
import { clock, count, rate, roughTime } from "./words.js";

const NOTHING_LOST_DB = 100;
const STAGES = {
  plan: "looking at the source", decode: "decoding", infer: "the networks", wait: "waiting for frames", encode: "encoding",
  check: "checking", assemble: "putting together",
};
const OUTCOMES = {
  kept: "kept", upscaled: "enlarged", converted: "converted", dropped: "left out", copied: "bit for bit", rewritten: "rewritten",
};

export function open(container, job) {
  container.replaceChildren(element("p", { class: "hint", role: "status" }, "Loading…"));
  askJson("GET", job.links.report).then(
    (report) => container.replaceChildren(page(report)),
    (problem) => {
      const { what, todo } = advice(problem);
      container.replaceChildren(element("p", { role: "alert" }, `${what} ${todo ?? ""}`));
    });
  return { update() {}, close() {} };
}

function page(report) {
  return element("article", { class: "report" },
    element("p", { class: "lead" }, summary(report)),
    facts(report),
    list("Left out, as agreed", report.losses),
    list("Had no place in the file type", report.lost_in_container),
    list("Could not be decoded, and was concealed", report.frames.concealed.map(place)),
    table("The picture and the file", ["", "Source", "Result", ""],
      report.properties.filter((line) => line.source || line.result).map((line) => [
        capital(line.name.replaceAll("_", " ")), plain(line.source), plain(line.result), outcome(line)])),
    table("Streams", ["", "Source", "Result", ""],
      report.streams.map((stream) => [
        `${stream.index} ${stream.type}`, streamWords(stream), stream.result ? streamWords(stream.result) : "none", outcome(stream)])),
    list("Scene cuts", report.scene_cuts.length ? [report.scene_cuts.map((cut) => clock(cut.seconds, true)).join(", ")] : []),
    list("Notes", report.notes));
}

function summary(report) {
  const { frames, timestamps, sound_offsets: offsets } = report;
  const same = frames.source === frames.result ? `All ${count(frames.source, "frame")} are there` : `${count(frames.result, "frame")} of ${frames.source.toLocaleString("en")} are there`;
  const times = timestamps.exact ? "each at its very own time" : `their times ${timestamps.words}`;
  const apart = Math.max(0, ...offsets.map((one) => Math.abs(one.result_seconds - one.source_seconds)));
  const sound = offsets.length ? ` Sound and picture are within ${(apart * 1000).toFixed(apart < 0.001 ? 2 : 0)} ms of where they were.` : "";
  return `${same}, ${times}.${sound}`;
}

function facts(report) {
  const { quality, rendering } = report;
  const entries = [];
  if (quality.psnr_db != null) {
    entries.push(["Against the source", decibels(quality.psnr_db), `when brought back to its size: ${count(quality.frames_compared, "frame")} compared, the worst ${decibels(quality.worst_psnr_db)} at ${clock(quality.worst_frame.seconds, true)}`]);
  }
  if (quality.encoding_psnr_db != null) {
    entries.push(["After compression", quality.encoding_psnr_db === NOTHING_LOST_DB ? "nothing lost" : `${decibels(quality.encoding_psnr_db)} or better`, "against the frames as they were drawn"]);
  }
  for (const [name, seams] of [["Between tiles", quality.tile_borders], ["Between segments", quality.segment_borders]]) {
    if (seams) entries.push([name, `${seams.ratio.toFixed(2)} times`, `as much change as elsewhere; 1 means that no seam can be seen (${seams.seams} looked at)`]);
  }
  if (report.frames_per_second) {
    const busy = report.device_busy != null ? `the networks were at work ${Math.round(report.device_busy * 100)} % of the time` : "";
    entries.push(["Speed", rate(report.frames_per_second), busy]);
  }
  if (rendering) entries.push(["Frames", rendering.tile_px ? `in tiles of ${rendering.tile_px} pixels` : "drawn whole", `${rendering.batch_frames} at a time`]);
  const seconds = Object.entries(report.stage_seconds).filter(([, taken]) => taken >= 0.05);
  if (seconds.length) entries.push(["Time spent", "", seconds.map(([stage, taken]) => `${STAGES[stage] ?? stage} ${taken < 10 ? `${taken.toFixed(1)} s` : roughTime(taken)}`).join(", ")]);
  return element("dl", {}, entries.map(([name, figure, words]) => element("div", {},
    element("dt", {}, name), element("dd", {}, figure ? element("strong", {}, figure) : null, words ? element("span", {}, words) : null))));
}

function list(title, lines) {
  if (!lines?.length) return null;
  return element("section", {}, element("h4", {}, title), element("ul", {}, lines.map((line) => element("li", {}, capital(line)))));
}

function table(title, heads, rows) {
  return element("section", {},
    element("h4", {}, title),
    element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": title },
      element("table", {},
        element("thead", {}, element("tr", {}, heads.map((head, column) => (head ? element("th", { scope: "col" }, head) : element("td", {}, column ? element("span", { class: "unseen" }, "What became of it") : ""))))),
        element("tbody", {}, rows.map(([first, ...others]) => element("tr", {}, element("th", { scope: "row" }, first), others.map((cell) => element("td", {}, cell))))))));
}

/** "25/1" is 25, "640x360" is read as 640 × 360. */
function plain(value) {
  return value?.replace(/^(\d+)\/1$/, "$1").replace(/^(\d+)x(\d+)$/, "$1 × $2") ?? "not said";
}

function outcome(line) {
  const words = OUTCOMES[line.outcome] ?? line.outcome;
  return element("span", { class: `outcome ${line.outcome}` }, line.why ? `${words}: ${line.why}` : words);
}

function streamWords(stream) {
  return [stream.codec ?? "unknown codec", stream.language, stream.title, ...stream.disposition].filter(Boolean).join(" ");
}

function place(one) {
  return `frame ${one.frame}, at ${clock(one.seconds, true)}`;
}

function decibels(value) {
  return `${value.toFixed(1)} dB`;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
