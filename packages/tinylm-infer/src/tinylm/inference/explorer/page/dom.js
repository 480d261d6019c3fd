// Elements, numbers and colours for every panel. Text goes in as text nodes only: what a model or a reader writes is
// never read as HTML.

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "class") element.className = value;
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// A token or a character on one line: a space as a dot, line ends as arrows, what cannot be seen as an escape.
export function visible(text) {
  return text
    .replaceAll(" ", "·")
    .replaceAll("\\n", "↵")
    .replaceAll("\n", "↵")
    .replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

export function short(text, length = 14) {
  const shown = [...visible(text)];
  return shown.length > length ? `${shown.slice(0, length - 1).join("")}…` : shown.join("");
}

export function number(x, digits = 3) {
  if (x === null || x === undefined) return "–";
  if (!Number.isFinite(x)) return String(x);
  if (x !== 0 && (Math.abs(x) < 10 ** -digits || Math.abs(x) >= 1e6)) return x.toExponential(Math.max(digits - 1, 0));
  return x.toLocaleString("en", { maximumFractionDigits: digits });
}

export function percent(p) {
  if (p === null || p === undefined) return "–";
  if (p === 0) return "0 %";
  return p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`;
}

export function bytes(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim().split(" ").map(Number);
}

// Paints a Picture of the server into a canvas, a pixel a number. Signed: two colours away from 0; else one, from 0.
export function paint(canvas, picture, signed = false) {
  const [heat, cold] = [colour("--heat"), colour("--cold")];
  const values = bytes(picture.data);
  canvas.width = picture.columns;
  canvas.height = picture.rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(picture.columns, picture.rows);
  values.forEach((value, at) => {
    const level = signed ? (value - 127.5) / 127.5 : value / 255;
    const [r, g, b] = level < 0 ? cold : heat;
    image.data.set([r, g, b, 255 * Math.abs(level) ** 0.6], 4 * at);
  });
  context.putImageData(image, 0, 0);
  return values;
}

export function card(title, ...children) {
  return el("section", { class: "card" }, title ? el("h3", {}, title) : null, ...children);
}

// How wide a chart may be drawn, so that its letters are as large as the page's.
export function wide() {
  return Math.max(280, Math.min(980, document.getElementById("stage").clientWidth - 40));
}

// Round numbers from 0 up to `top`, three to six of them.
export function ticks(top) {
  const power = 10 ** Math.floor(Math.log10(top / 5));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= top / 5 - 1e-12);
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => i * step);
}

// A chart's axes: lines and figures from 0 to `top` at the left, `marks` ([x, text]) below, and what both are.
export function axes({ width, height, left }, y, top, marks, [below, beside]) {
  const text = (x, y, anchor, words) => svg("text", { x, y, "text-anchor": anchor }, words);
  return [ticks(top).map((v) => [svg("line", { class: "grid", x1: left, x2: width, y1: y(v), y2: y(v) }), text(left - 5, y(v) + 4, "end", number(v, 3))]),
    marks.map(([x, words]) => text(x, height - 20, "middle", words)), text((left + width) / 2, height - 4, "middle", below), text(left + 4, 10, "start", beside)];
}

// A labelled range with its value beside it; `change(value)` while it is moved.
export function range(label, value, { min, max, step, show = number }, change) {
  const output = el("output", {}, show(value));
  const input = el("input", {
    type: "range", min, max, step, value, "aria-label": label,
    oninput: () => {
      output.textContent = show(Number(input.value));
      change(Number(input.value));
    },
  });
  return el("label", { class: "range" }, el("span", {}, label, output), input);
}

export function replace(root, ...children) {
  root.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}
