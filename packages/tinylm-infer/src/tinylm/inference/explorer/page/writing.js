// Panel 4: a text as it is written, the cache's blocks as they fill, and the same without a cache.

import { card, el, number, percent, range, replace, short, visible } from "./dom.js";
import { notebook, page, source } from "./links.js";
import { ask, looked, state, update } from "./state.js";

let playing = null;

const count = (x) => (x >= 1e9 ? `${number(x / 1e9, 2)} G` : `${number(x / 1e6, 2)} M`);

function blocks(frame, answer, tokens) {
  const texts = [...tokens.map((token) => token.text), ...answer.frames.map((one) => one.text)];
  const owned = new Map(frame.table.map((block, place) => [block, place]));
  return el("div", { class: "cache" }, Array.from({ length: answer.blocks }, (_, block) => {
    const place = owned.get(block);
    const slots = Array.from({ length: answer.block_size }, (_, i) => {
      const t = place === undefined ? Infinity : place * answer.block_size + i;
      return el("i", { class: t < frame.cached ? (t === frame.cached - 1 ? "slot full new" : "slot full") : "slot", title: t < frame.cached ? `token ${t}: ${visible(texts[t])}` : "free" }, t < frame.cached ? short(texts[t], 5) : "");
    });
    return place === undefined ? el("div", { class: "block" }, el("b", {}, `block ${block}: free`))
      : el("div", { class: "block owned" }, el("b", {}, `block ${block}`), el("div", { class: "slots" }, slots));
  }));
}

function bar(label, value, top, text, kind) {
  return el("div", { class: "compare" }, el("span", {}, label), el("div", { class: "bars" }, el("i", { class: kind, style: { width: `${(100 * value) / top}%` } })), el("span", { class: "p" }, text));
}

function compared(answer, at) {
  const [frame, upTo] = [answer.frames[at], answer.frames.slice(0, at + 1)];
  const sum = (name) => upTo.reduce((total, one) => total + one[name], 0);
  const [cached, again] = [sum("cached_operations"), sum("again_operations")];
  return card("With the cache, and computed again", bar("this token, cached", frame.cached_operations, frame.again_operations, count(frame.cached_operations), "after"),
    bar("this token, again", frame.again_operations, frame.again_operations, count(frame.again_operations), "again"),
    bar("all so far, cached", cached, again, count(cached), "after"), bar("all so far, again", again, again, count(again), "again"),
    el("p", { class: "caption" }, `Multiplications and additions: the cache needs ${percent(cached / again)} of them. In time: ${number(1e3 * sum("cached_seconds"), 1)} ms against ${number(1e3 * sum("again_seconds"), 1)} ms. The two results differ by at most ${number(Math.max(...upTo.map((one) => one.difference)), 7)} nats.`));
}

// The buttons stay while what is below them changes: a drag goes on, and the keyboard keeps its place.
function stage(root, tokens) {
  let answer = null;
  const last = () => answer.frames.length - 1;
  const at = () => (state.frame < 0 ? last() : Math.min(state.frame, last()));
  const text = el("p", { class: "written" });
  const below = el("div", {});
  const stop = () => { clearInterval(playing); playing = null; };
  const go = (to) => { update({ frame: to >= last() ? -1 : Math.max(to, 0) }); draw(); };
  const leave = (to) => { stop(); go(to); };
  const play = el("button", { type: "button", class: "main", onclick: () => {
    if (playing) { stop(); return draw(); }
    if (at() === last()) go(0);
    playing = setInterval(() => { if (at() >= last() - 1 || !root.isConnected) stop(); if (root.isConnected) go(at() + 1); }, 350);
    draw();
  } }, "Play");
  const slider = el("input", { type: "range", min: 0, "aria-label": "Tokens written", oninput: () => leave(Number(slider.value)) });
  function draw() {
    const now = at();
    const frame = answer.frames[now];
    play.textContent = playing ? "Pause" : "Play";
    slider.max = last();
    slider.value = now;
    replace(text, tokens.map((token) => visible(token.text)).join(""), answer.frames.slice(0, now + 1).map((one, i) =>
      el("span", { class: `chip${i === now ? " latest" : ""}`, style: { background: `var(--t${i % 6})` } }, visible(one.text))));
    replace(below, card(`The cache: ${frame.cached} keys and values in ${frame.table.length} of ${answer.blocks} blocks`, blocks(frame, answer, tokens),
      el("p", { class: "legend" }, "A block is taken when the text reaches it, in whatever order they are free; the newest token's keys are marked.")), compared(answer, now));
  }
  replace(root, card("The engine writes", el("div", { class: "player" }, play, el("button", { type: "button", "aria-label": "One token back", onclick: () => leave(at() - 1) }, "‹"),
    el("button", { type: "button", "aria-label": "One token on", onclick: () => leave(at() + 1) }, "›"), slider), text), below);
  return (written) => { answer = written; draw(); };
}

export default {
  id: "writing",
  short: "Writing",
  title: "Writing, with a memory",
  says: "A new token looks back at the keys and values of all before it, and these do not change: so the engine keeps them, in blocks that it takes as the text grows. Beside each step the whole text is computed again: the same answer, for many times the work.",
  links: [page("learn/inference"), notebook("inference/02_kv_cache.ipynb"), source("tinylm-infer/src/tinylm/inference/paged_cache.py")],
  async show(root, changed, { tokens }, isMine) {
    if ([...changed].every((name) => ["position", "merge", "theme", "frame"].includes(name)) && root.children.length) return;
    clearInterval(playing);
    playing = null;
    const { temperature, top_k, top_p, min_p, seed } = state;
    const turn = (name) => (value) => update({ [name]: value, frame: -1 });
    const body = el("div", {});
    if (!root.querySelector(".knobs")) {
      replace(root, card("How it is drawn", el("div", { class: "knobs" }, range("temperature", temperature, { min: 0, max: 2, step: 0.05 }, turn("temperature")),
        range("seed", seed, { min: 0, max: 50, step: 1 }, turn("seed")), range("tokens", state.count, { min: 1, max: 64, step: 1 }, turn("count")))), body);
    }
    const draw = stage(root.lastChild, tokens);
    for (let done = false; !done;) {
      const answer = await ask("writing", "writing", { ...looked(), temperature, top_k, top_p, min_p, seed, count: state.count });
      if (!answer || !isMine()) return;
      draw(answer);
      done = answer.done;
    }
  },
};
