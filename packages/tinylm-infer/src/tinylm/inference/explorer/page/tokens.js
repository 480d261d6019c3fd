// Panel 1: characters, bytes, pieces, every merge in order, ids.

import { card, el, replace, visible } from "./dom.js";
import { notebook, page, source } from "./links.js";
import { state, update } from "./state.js";

let playing = null;

// The bytes of the text cut where `done` steps of the encoding have left borders: [start, end, number of the step].
function segments(answer, done, size) {
  const borders = new Map(Array.from({ length: size }, (_, i) => [i, { end: i + 1, step: -1 }]));
  answer.steps.slice(0, done).forEach((step, i) => {
    borders.delete(step.middle);
    borders.set(step.start, { end: step.end, step: i });
  });
  return [...borders].sort((a, b) => a[0] - b[0]).map(([start, { end, step }]) => [start, end, step]);
}

function label(data) {
  try {
    return visible(new TextDecoder("utf-8", { fatal: true }).decode(data));
  } catch {
    return [...data].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  }
}

function stage(answer, done) {
  const data = new TextEncoder().encode(answer.read.text);
  const placed = answer.read.tokens.filter((one) => one.start !== null); // the tokenizer's own stand nowhere in the text
  const token = (start) => answer.spans.findIndex(([a, b]) => a <= start && start < b);
  const boxes = segments(answer, done, data.length).map(([start, end, step]) => {
    const number = token(start);
    const [a, b] = answer.spans[number] ?? [0, 0];
    const ready = a === start && b === end;
    return [start, el("span", {
      class: `box${ready ? " ready" : ""}${step >= 0 && step === done - 1 ? " fresh" : ""}`,
      title: ready ? `id ${placed[number]?.id ?? ""}, bytes ${start} to ${end}` : `bytes ${start} to ${end}`,
      style: ready ? { background: `var(--t${number % 6})` } : {},
    }, label(data.slice(start, end)))];
  });
  const pieces = answer.pieces.length ? answer.pieces : [[0, data.length]];
  return pieces.map(([a, b]) => el("span", { class: "piece" }, boxes.filter(([start]) => a <= start && start < b).map(([, box]) => box)));
}

function caption(answer, done) {
  if (!answer.steps.length) return "Nothing to merge: every piece is one token from the start.";
  if (done === 0) return `${answer.steps.length} merges to do. Each piece begins as single bytes.`;
  const step = answer.steps[done - 1];
  return [
    `Merge ${done} of ${answer.steps.length}: `,
    el("b", { class: "mono" }, visible(step.left)), " + ", el("b", { class: "mono" }, visible(step.right)), " → ",
    el("b", { class: "mono" }, visible(step.result)), `, number ${step.rank} in the order in which training found them.`,
  ];
}

function player(answer) {
  const total = answer.steps.length;
  let done = state.merge < 0 || state.merge > total ? total : state.merge;
  const boxes = el("div", { class: "merge-stage", "aria-live": "off" });
  const told = el("p", { class: "caption" });
  const slider = el("input", { type: "range", min: 0, max: total, step: 1, "aria-label": "Merges done", oninput: () => { stop(); go(Number(slider.value)); } });
  const play = el("button", { type: "button", class: "main", onclick: () => (playing ? stop() : start()) }, "Play");
  const steps = el("ol", { class: "steps", start: 0 }, answer.steps.map((step, i) => el("li", { onclick: () => { stop(); go(i + 1); } },
    el("span", { class: "mono" }, `${visible(step.left)} + ${visible(step.right)} → ${visible(step.result)}`), el("i", {}, `#${step.rank}`))));
  function draw() {
    replace(boxes, stage(answer, done));
    replace(told, caption(answer, done));
    slider.value = done;
    [...steps.children].forEach((line, i) => line.classList.toggle("now", i === done - 1));
    const line = steps.children[Math.max(done - 1, 0)];
    if (line) steps.scrollTop = line.offsetTop - steps.offsetTop - steps.clientHeight / 2;
  }
  function go(to) {
    done = Math.min(Math.max(to, 0), total);
    update({ merge: done === total ? -1 : done });
    draw();
  }
  function stop() {
    clearInterval(playing);
    playing = null;
    play.textContent = "Play";
  }
  function start() {
    if (done === total) go(0);
    play.textContent = "Pause";
    playing = setInterval(() => (boxes.isConnected && done < total ? go(done + 1) : stop()), Math.max(120, Math.min(700, 12000 / total)));
  }
  stop();
  draw();
  requestAnimationFrame(draw); // once more when it stands on the page, where it can be scrolled
  const buttons = el("div", { class: "player" }, play,
    el("button", { type: "button", onclick: () => { stop(); go(done - 1); }, "aria-label": "One merge back" }, "‹"),
    el("button", { type: "button", onclick: () => { stop(); go(done + 1); }, "aria-label": "One merge on" }, "›"), slider);
  return [card(`Bytes become tokens (${answer.algorithm}, ${answer.backend})`, total ? buttons : null, told, boxes), total ? card("Every merge in its order", steps) : null];
}

function listed(answer) {
  const lines = answer.steps.map((step) => el("tr", {}, el("td", { class: "mono" }, visible(step.result)), el("td", {}, step.says)));
  return card(`Every step of ${answer.algorithm}`, el("div", { class: "scroll tall" }, el("table", {}, el("tbody", {}, lines))));
}

function spelled(answer) {
  return card("Characters and their bytes (UTF-8)", el("div", { class: "characters" }, answer.characters.map((character) => el("span", { title: character.code },
    el("b", {}, visible(character.text)), el("small", {}, character.code), el("small", { class: "mono" }, character.bytes.join(" "))))));
}

function table(answer) {
  const head = el("tr", {}, ["#", "token", "id", "characters", "bytes"].map((name) => el("th", {}, name)));
  const rows = answer.read.tokens.map((token, i) => el("tr", { class: i === state.position ? "chosen" : "", onclick: () => update({ position: i }) },
    el("td", {}, String(i)), el("td", {}, el("span", { class: "chip", style: { background: `var(--t${i % 6})` } }, visible(token.text))),
    el("td", { class: "mono" }, String(token.id)),
    el("td", { class: "mono" }, token.start === null ? "–" : `${token.start}–${token.end}`), el("td", { class: "mono" }, token.hex)));
  return card("Ids, and where each stands in the text", el("div", { class: "scroll tall" }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows))));
}

export default {
  id: "tokens",
  short: "Tokens",
  title: "From text to ids",
  says: "A model reads numbers, so the text is cut into pieces, each piece into bytes, and pairs of neighbours are merged in the order in which training found them. What is left when no learned pair remains are the tokens; each has an id, and a place in your text.",
  links: [page("learn/tokenizer"), notebook("tokenizer/04_byte_level_bpe.ipynb"), notebook("tokenizer/06_unigram.ipynb"), source("tinylm-tokenizer/src/tinylm/tokenizer/byte_bpe.py")],
  show(root, changed, { tokenised }) {
    if (changed.size === 1 && changed.has("merge")) return;
    const [stage, steps] = tokenised.merges ? player(tokenised) : [listed(tokenised), null];
    replace(root, stage, el("div", { class: "two" }, el("div", {}, spelled(tokenised), steps), table(tokenised)));
  },
};
