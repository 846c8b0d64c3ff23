// Making elements: a name, its attributes, its children.

/** `attributes`: a function is a listener, `true` an empty attribute, null and false none at all. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== null && value !== false && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Writes only what differs: a screen reader reads again what is written again. */
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** A small picture beside a name that says it all. Without `source` it is there, and takes no room. */
export function smallPicture(source = null) {
  return element("div", { class: "picture", "aria-hidden": "true" }, source ? element("img", { src: source, alt: "" }) : null);
}

let lastNumber = 0;

/** An id that no other element has, for labels and what they stand by. */
export function freshId(stem) {
  lastNumber += 1;
  return `${stem}-${lastNumber}`;
}
