// Numbers and facts in words, and the few helpers that make elements. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element; children are nodes or text. */
export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Makes an element of a picture. */
export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined));
  return element;
}

export function rate(perSecond) {
  if (perSecond >= 100) return `${Math.round(perSecond)}`;
  if (perSecond >= 10) return perSecond.toFixed(1);
  return perSecond.toFixed(perSecond === 0 ? 0 : 2);
}

/** A share of success is never rounded up to a whole: 99.96 % is not 100 %. */
export function percent(share) {
  if (share === undefined) return "–";
  const value = Math.floor(share * 1000) / 10;
  return `${share === 1 ? "100" : value.toFixed(1)} %`;
}

export function duration(micros) {
  if (micros === undefined) return "–";
  if (micros < 1_000) return `${micros} µs`;
  if (micros < 10_000) return `${(micros / 1_000).toFixed(1)} ms`;
  if (micros < 1_000_000) return `${Math.round(micros / 1_000)} ms`;
  return `${(micros / 1_000_000).toFixed(1)} s`;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

export function ago(millis, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - millis) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(millis).toISOString().slice(0, 16).replace("T", " ");
}

/** Writes plain data as YAML, as far as resources need it. */
export function yaml(value, indent = "") {
  if (Array.isArray(value)) {
    if (value.length === 0) return " []";
    return value.map((item) => `\n${indent}-${nested(item, `${indent}  `)}`).join("");
  }
  if (value !== null && typeof value === "object") {
    const entries = Object.entries(value);
    if (entries.length === 0) return " {}";
    return entries.map(([key, item]) => `\n${indent}${scalar(key)}:${yaml(item, `${indent}  `)}`).join("");
  }
  return ` ${scalar(value)}`;
}

/** An item of a list: its first line stands behind the dash. */
function nested(item, indent) {
  const text = yaml(item, indent);
  return text.startsWith("\n") ? ` ${text.slice(1 + indent.length)}` : text;
}

function scalar(value) {
  if (typeof value !== "string") return String(value);
  const plain = /^[A-Za-z0-9_./-][A-Za-z0-9_./ ()|*^$+?-]*$/.test(value) && value.trim() === value;
  const other = /^(true|false|null|yes|no|on|off|~|-?[0-9.][0-9._eE+-]*|-|\?|\.)$/i.test(value) || value.startsWith("- ");
  return plain && !other ? value : JSON.stringify(value);
}
