// Figures in words that people read. What belongs together is joined by spaces that break no line (NB).

const NB = "\u00a0";
const UNITS = ["bytes", "kB", "MB", "GB", "TB"];

export function size(bytes) {
  let value = bytes, unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) { value /= 1000; unit += 1; }
  return `${unit > 0 && value < 9.95 ? value.toFixed(1) : Math.round(value)}${NB}${UNITS[unit]}`;
}

/** How long something takes, no more exact than anyone can know: "40 s", "3 min", "2 h 10 min". */
export function roughTime(seconds) {
  if (seconds < 1.5) return `a${NB}second`;
  if (seconds < 20) return `${Math.round(seconds)}${NB}s`;
  if (seconds < 57.5) return `${Math.round(seconds / 5) * 5}${NB}s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes}${NB}min`;
  if (minutes < 60 * 48) return minutes % 60 ? `${Math.floor(minutes / 60)}${NB}h${NB}${minutes % 60}${NB}min` : `${minutes / 60}${NB}h`;
  return `${Math.round(minutes / 60 / 24)}${NB}days`;
}

/** A place in a video: "1:02:03", "0:07", and with `fine` "0:07.25". */
export function clock(seconds, fine = false) {
  const hundredths = Math.round(Math.max(0, seconds) * 100);
  const whole = Math.floor(fine ? hundredths / 100 : Math.max(0, seconds) + 1e-6);
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  const pad = (number) => String(number).padStart(2, "0");
  const head = hours ? `${hours}:${pad(minutes)}` : `${minutes}`;
  return `${head}:${pad(whole % 60)}${fine ? `.${pad(hundredths % 100)}` : ""}`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function dimensions(width, height) {
  return `${width}${NB}×${NB}${height}`;
}

export function rate(perSecond) {
  if (perSecond < 0.95) return count(Math.max(1, Math.round(perSecond * 60)), "frame") + " a minute";
  return `${perSecond < 9.95 ? perSecond.toFixed(1) : Math.round(perSecond)} frames a second`;
}

export function place(position) {
  if (position === 1) return "Next in the queue";
  const tail = position % 100 >= 11 && position % 100 <= 13 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[position % 10] ?? "th";
  return `${position}${tail} in the queue`;
}

/** "today at 14:05", "12 March at 9:30". */
export function moment(iso) {
  const then = new Date(iso);
  const time = then.toLocaleTimeString("en-GB", { hour: "numeric", minute: "2-digit" });
  if (then.toDateString() === new Date().toDateString()) return `today at ${time}`;
  const sameYear = then.getFullYear() === new Date().getFullYear();
  const day = then.toLocaleDateString("en-GB", { day: "numeric", month: "long", year: sameYear ? undefined : "numeric" });
  return `${day} at ${time}`;
}
