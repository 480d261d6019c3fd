// Panel 2: embeddings and positions, every head's pattern, what each block adds, and the logit lens.

import { axes, card, el, number, paint, percent, replace, short, svg, visible, wide } from "./dom.js";
import { notebook, page, source } from "./links.js";
import { ask, looked, state, update } from "./state.js";

let seen = null;
let guesses = null;

const place = (tokens) => (state.position < 0 ? tokens.length + state.position : state.position);

function embedding(answer) {
  const canvas = el("canvas", { class: "pixels tall-pixels", title: "Click a number to see how it was made", onclick: (event) => {
    const box = canvas.getBoundingClientRect();
    const [d, t] = [Math.floor((event.offsetX / box.width) * answer.embed.columns), Math.floor((event.offsetY / box.height) * answer.embed.rows)];
    update({ panel: "arithmetic", value: `embed/${t}/${d}` });
  } });
  paint(canvas, answer.embed, true);
  return card("Embeddings: a row of numbers for each token", canvas,
    el("p", { class: "legend" }, `${answer.embed.rows} tokens × ${answer.embed.columns} numbers, from ${number(answer.embed.low, 2)} to ${number(answer.embed.high, 2)}; click one.`));
}

function dial(angle, i) {
  const [x, y] = [10 + 8 * Math.cos(angle), 10 - 8 * Math.sin(angle)];
  return svg("svg", { viewBox: "0 0 20 20", class: "dial" }, svg("title", {}, `pair ${i}: turned by ${number(angle % (2 * Math.PI), 2)} radians`),
    svg("circle", { cx: 10, cy: 10, r: 9 }), svg("line", { x1: 10, y1: 10, x2: x, y2: y }));
}

function positions(answer, at) {
  if (answer.position !== "rope") return card("Positions", el("p", {}, "A learned row of numbers for each place is added to the token's own; the picture beside shows the sum."));
  return card(`Positions: how far place ${at} turns each pair of a head's numbers (RoPE)`,
    el("div", { class: "dials" }, answer.turns.map((turn, i) => dial(turn * at, i))),
    el("p", { class: "legend" }, "The first pairs turn fast and tell neighbours apart, the last hardly move. Choose another token above to turn them."));
}

function stream(answer, at) {
  const [width, height, left] = [wide(), 230, 44];
  const top = Math.max(...answer.layers.map((layer) => Math.max(layer.residual[at], layer.attention[at], layer.mlp[at])), answer.embed_norm[at]);
  const x = (i) => left + ((i + 0.5) * (width - left)) / answer.layers.length;
  const bottom = height - 36;
  const y = (value) => bottom - (value / top) * (bottom - 18);
  const band = Math.min(22, (width - left) / answer.layers.length / 3);
  const bars = answer.layers.flatMap((layer, i) => [["attention", -1], ["mlp", 0]].map(([name, side]) =>
    svg("rect", { class: `bar ${name}${i === state.layer ? " chosen" : ""}`, x: x(i) + side * band, y: y(layer[name][at]), width: Math.max(band - 1, 1.5), height: bottom - y(layer[name][at]), rx: 2,
      onclick: () => update({ panel: "arithmetic", value: `blocks.${i}.${name === "mlp" ? "mlp" : "attention.output"}/${at}/0` }) },
      svg("title", {}, `block ${i}: ${name} adds a vector of length ${number(layer[name][at], 2)}; click for its numbers`))));
  const points = answer.layers.map((layer, i) => `${x(i)},${y(layer.residual[at])}`).join(" ");
  const names = answer.layers.map((_, i) => [x(i), String(i)]).filter(([, i]) => i % Math.ceil((answer.layers.length * 28) / width) === 0);
  const figure = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": "Length of the residual stream, and of what attention and MLP add, in each block" },
    axes({ width, height, left }, y, top, names, ["block", "length of the vector"]), bars, svg("polyline", { class: "line", points }), answer.layers.map((layer, i) => svg("circle", { class: "dot", cx: x(i), cy: y(layer.residual[at]), r: 3 })));
  return card("What each block adds to this token", figure, el("p", { class: "legend" },
    el("i", { class: "key attention" }), "attention adds ", el("i", { class: "key mlp" }), "MLP adds ", el("i", { class: "key line" }), "the residual stream behind the block"));
}

function heads(answer) {
  const rows = answer.layers.map((layer, l) => el("div", { class: "head-row" }, el("span", {}, String(l)), layer.heads.map((head, h) => {
    const canvas = el("canvas", { class: "pixels" });
    paint(canvas, head);
    return el("button", { type: "button", class: `head${l === state.layer && h === state.head ? " chosen" : ""}`, "aria-label": `block ${l}, head ${h}`, title: `block ${l}, head ${h}: ${number(layer.entropy[h], 1)} bits`,
      onclick: () => update({ layer: l, head: h }) }, canvas);
  })));
  return card("Every head's pattern: a row for each block", el("div", { class: "scroll heads" }, rows));
}

function pattern(answer, at) {
  const layer = answer.layers[Math.min(state.layer, answer.layers.length - 1)];
  const head = layer.heads[Math.min(state.head, layer.heads.length - 1)];
  const tokens = answer.read.tokens;
  const canvas = el("canvas", { class: "pixels square" });
  const values = paint(canvas, head);
  const told = el("p", { class: "legend" }, "Rows look back at columns. Point at a number; click it to see how it was made.");
  const cell = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.offsetY / box.height, event.offsetX / box.width].map((part) => Math.min(Math.floor(part * tokens.length), tokens.length - 1));
  };
  canvas.addEventListener("pointermove", (event) => {
    const [q, k] = cell(event);
    if (k <= q) replace(told, el("b", { class: "mono" }, short(tokens[q].text)), ` (${q}) looks at `, el("b", { class: "mono" }, short(tokens[k].text)), ` (${k}): ${percent(values[q * tokens.length + k] / 255)}`);
  });
  canvas.addEventListener("click", (event) => {
    const [q, k] = cell(event);
    if (k <= q) update({ panel: "arithmetic", value: `blocks.${state.layer}.attention.pattern/${state.head}/${q}/${k}` });
  });
  const mine = tokens.map((token, k) => {
    const p = k <= at ? values[at * tokens.length + k] / 255 : 0;
    return el("span", { class: `weighed${k === at ? " chosen" : ""}`, title: percent(p), style: { background: `rgb(var(--heat) / ${(p ** 0.7).toFixed(3)})` }, onclick: () => update({ position: k }) }, visible(token.text));
  });
  return card(`Block ${state.layer}, head ${state.head}`, el("div", { class: "big-head" }, canvas, el("div", {}, told,
    el("p", {}, `Where token ${at} looks:`), el("div", { class: "weighed-text" }, mine),
    el("p", { class: "legend" }, `On average its queries spread over ${number(layer.entropy[state.head], 2)} bits: 0 is one token, ${number(Math.log2(tokens.length), 1)} would be all of them alike.`))));
}

function lens(answer, stages, at) {
  const tokens = answer.read.tokens;
  const head = el("tr", {}, el("th", {}, "after"), tokens.map((token, t) => el("th", { class: t === at ? "chosen" : "" }, short(token.text, 9))));
  const rows = stages.map((stage, s) => el("tr", {}, el("th", {}, s === 0 ? "embedding" : `block ${s - 1}`), stage.map((cell, t) => {
    const [best] = cell.guesses;
    const right = t + 1 < tokens.length && tokens[t + 1].id === best.id;
    return el("td", { class: `${right ? "right" : ""}${t === at ? " chosen" : ""}`, style: { background: `rgb(var(--heat) / ${(0.5 * best.p).toFixed(3)})` }, onclick: () => update({ position: t }),
      title: `${cell.guesses.map((g) => `${visible(g.text)} ${percent(g.p)}`).join("   ")}\nthe token that follows: ${percent(cell.truth)}\n${number(cell.entropy, 1)} bits` }, short(best.text, 9));
  })));
  return card("Logit lens: what the model would say next if it stopped here", el("div", { class: "scroll" }, el("table", { class: "lens" }, el("thead", {}, head), el("tbody", {}, rows))),
    el("p", { class: "legend" }, "The stronger the colour, the surer; framed where it is the token that really follows (nostalgebraist 2020). Point at one for its three best guesses."));
}

export default {
  id: "layers",
  short: "Layers",
  title: "Through the blocks",
  says: "Each token becomes a row of numbers, the residual stream, and every block adds two things to it: what attention brings from earlier tokens, and what the MLP makes of that. The logit lens asks after each block what the model would say next if it stopped there.",
  links: [page("learn/modern-block"), notebook("model/03_attention_by_hand.ipynb"), notebook("model/05_rope.ipynb"), source("tinylm-model/src/tinylm/model/transformer.py")],
  async show(root, changed, _, isMine) {
    if (["text", "point", "panel"].some((name) => changed.has(name)) || !seen) {
      seen = guesses = null;
      const found = await ask("layers", "layers", looked());
      if (!found || !isMine()) return;
      seen = found;
    }
    const at = place(seen.read.tokens);
    const below = el("div", {});
    replace(root, el("div", { class: "two even" }, embedding(seen), positions(seen, at)), stream(seen, at), el("div", { class: "two attention" }, heads(seen), pattern(seen, at)), below);
    if (!guesses) guesses = await ask("lens", "lens", looked());
    if (guesses && isMine()) replace(below, lens(seen, guesses, at));
  },
  failed() {
    seen = null;
  },
};
