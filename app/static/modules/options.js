// What can be asked of a job, in plain words. The names and values are those of the API's JobOptions.

import { element, freshId } from "./elements.js";

const REMEMBERED = "twostep-options";

const PRESETS = {
  aligned: ["Standard", "The recommended networks: neighbouring frames are lined up before they help."],
  balanced: ["Thorough", "Networks of twice the work: slower, and closer to what was there."],
  compact: ["As published, small", "Small networks, put together as in the research paper."],
  paper: ["As published, full size", "The paper’s large networks, with weights that the operator has brought. Wants a GPU."],
  "paper-residual": ["Full size, gentler", "The large networks, which only add to an enlarged frame. Wants a GPU."],
  "tiny-random": ["Test", "Random networks: quick, and not meant to look good."],
  "repeat-pixels": ["Test, no networks", "Every pixel is repeated."],
};
const RECOMMENDED = "aligned";

const QUALITIES = [
  ["small", "Small file"],
  ["", "Balanced"],
  ["high", "High"],
  ["lossless", "Nothing lost"],
];

const CODECS = [
  ["", "Automatic: plays nearly everywhere"],
  ["h264", "H.264: plays everywhere"],
  ["hevc", "HEVC: smaller, for newer devices"],
  ["av1", "AV1: smallest, slow to make"],
  ["vp9", "VP9: for web pages"],
  ["prores", "ProRes: for editing, very large"],
  ["ffv1", "FFV1: for archives, very large"],
  ["png", "PNG pictures, one per frame"],
];

const CONTAINERS = [
  ["", "Like the source where it fits"], ["mp4", "MP4"], ["mkv", "Matroska (mkv)"], ["mov", "QuickTime (mov)"],
  ["webm", "WebM"], ["zip", "Zip of PNG pictures"],
];
const EFFORTS = [
  ["ultrafast", "Least"], ["veryfast", "Very little"], ["faster", "Little"], ["fast", "Some"], ["medium", "Usual"],
  ["slow", "Much"], ["veryslow", "Most"],
];
const FIELDS = [
  ["auto", "Where the source is interlaced"], ["always", "Always"], ["never", "Never"],
];
const DAMAGE = [
  ["fail", "Stop and say which"], ["conceal", "Go on with the nearest picture; the report names it"],
];

/** The form's fields. `read()` gives what to send, `onChange` is told of every change. */
export function optionFields(models, onChange) {
  const known = models.map((model) => model.preset);
  const loaded = models.find((model) => model.loaded && model.preset === RECOMMENDED) ?? models.find((model) => model.loaded);
  const remembered = recall();
  const first = [remembered.preset, loaded?.preset, RECOMMENDED].find((preset) => known.includes(preset)) ?? known[0];

  // What is in a worker's memory starts at once, and the recommended is what most people want; the rest is folded away.
  const isNear = (model) => model.loaded || model.preset === RECOMMENDED || model.preset === first;
  const choices = (chosen) => element("div", { class: "choices" }, chosen.map((model) => presetChoice(model, model.preset === first)));
  const others = models.filter((model) => !isNear(model));
  const crf = textField("crf", "Constant quality", "In the codec’s own numbers, 0 to 63, lower is better. Takes the place of the quality above.",
    { type: "number", min: 0, max: 63, step: 1, inputmode: "numeric" });
  const fields = element("div", { class: "options", input: changed, change: changed },
    element("fieldset", { class: "presets" }, element("legend", {}, "Networks"),
      choices(models.filter(isNear)),
      others.length ? element("details", { class: "more" }, element("summary", {}, "Other networks"), choices(others)) : null),
    element("fieldset", {}, element("legend", {}, "Quality"),
      element("div", { class: "segments" }, QUALITIES.map(([value, words]) => segment("quality", value, words, value === "")))),
    selectField("codec", "Format", CODECS, "What plays it afterwards. Only formats that browsers know can be watched while they render."),
    element("details", { class: "more advanced" },
      element("summary", {}, "More choices"),
      element("div", { class: "grid" },
        selectField("container", "File type", CONTAINERS),
        selectField("encoder_preset", "Effort of the encoder", EFFORTS, "More effort: a smaller file, later.", "medium"),
        crf,
        textField("encoder_options", "Further options of the encoder", "As tune=film:aq-mode=3", { type: "text", spellcheck: "false", autocapitalize: "off" }),
        selectField("deinterlace", "Deinterlace", FIELDS),
        selectField("on_error", "If a frame is damaged", DAMAGE),
        textField("frame_rate", "Frames a second of a zip of pictures", "As 25 or 24000/1001; other videos keep their own times.", { type: "text", inputmode: "decimal" }),
        element("div", { class: "checks" },
          checkField("reuse", "It is a recording of a screen", "What did not change is not computed again. Slower for what a camera took."),
          checkField("drop_unsupported", "Go on without what the result cannot hold", "Such as subtitles that the file type does not know. The report names it."),
          checkField("reuse_result", "Give me an earlier result of the same file, if there is one")))));

  for (const [name, value] of Object.entries(remembered)) set(fields, name, value);
  return { fields, read: () => read(fields), remember: () => remember(read(fields)) };

  function changed(event) {
    if (event.type === "input" && event.target.matches("select, [type=radio], [type=checkbox]")) return;
    if (event.type === "change" && event.target.matches("[type=text], [type=number]")) return;
    onChange();
  }
}

function read(fields) {
  const told = {};
  for (const field of fields.querySelectorAll("[name]")) {
    if (field.type === "radio" ? !field.checked || !field.value : false) continue;
    if (field.type === "checkbox") {
      if (field.checked) told[field.name] = true;
    } else if (field.value.trim() && field.value !== field.dataset.usual) {
      told[field.name] = field.type === "number" ? Number(field.value) : field.value.trim();
    }
  }
  if ("crf" in told) delete told.quality;
  return told;
}

function set(fields, name, value) {
  for (const field of fields.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
    if (field.type === "radio") field.checked = field.value === value || (field.checked && name === "preset");
    else if (field.type === "checkbox") field.checked = value === true;
    else field.value = value;
  }
}

function remember(chosen) {
  try {
    localStorage.setItem(REMEMBERED, JSON.stringify(chosen));
  } catch {
    // Denied, or full: the next time begins with the usual.
  }
}

function recall() {
  try {
    return JSON.parse(localStorage.getItem(REMEMBERED)) ?? {};
  } catch {
    return {};
  }
}

function presetChoice(model, checked) {
  const [name, words] = PRESETS[model.preset] ?? [model.preset, model.description];
  return element("label", { class: "choice" },
    element("input", { type: "radio", name: "preset", value: model.preset, checked }),
    element("span", { class: "choice-words" },
      element("span", { class: "choice-name" }, name,
        model.preset === RECOMMENDED ? element("span", { class: "note" }, "recommended") : null,
        model.loaded ? element("span", { class: "note" }, "ready") : null),
      element("span", { class: "hint" }, words)));
}

function segment(name, value, words, checked) {
  return element("label", { class: "segment" }, element("input", { type: "radio", name, value, checked }), element("span", {}, words));
}

function selectField(name, label, choices, hint = null, usual = choices[0][0]) {
  const id = freshId(name);
  return element("div", { class: "field" },
    element("label", { for: id }, label),
    element("select", { id, name, "data-usual": usual, "aria-describedby": hint ? `${id}-hint` : null },
      choices.map(([value, words]) => element("option", { value, selected: value === usual }, words))),
    hint ? element("p", { class: "hint", id: `${id}-hint` }, hint) : null);
}

function textField(name, label, hint, attributes) {
  const id = freshId(name);
  return element("div", { class: "field" },
    element("label", { for: id }, label),
    element("input", { id, name, "aria-describedby": `${id}-hint`, autocomplete: "off", ...attributes }),
    element("p", { class: "hint", id: `${id}-hint` }, hint));
}

function checkField(name, label, hint = null) {
  const id = freshId(name);
  return element("div", { class: "check" },
    element("input", { type: "checkbox", id, name, "aria-describedby": hint ? `${id}-hint` : null }),
    element("label", { for: id }, label),
    hint ? element("p", { class: "hint", id: `${id}-hint` }, hint) : null);
}
