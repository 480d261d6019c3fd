// Panel 3: the next token's distribution, and what temperature, min-p, top-k and top-p leave of it.

import { card, el, number, percent, range, replace, short, visible } from "./dom.js";
import { notebook, page, source } from "./links.js";
import { ask, looked, state, update } from "./state.js";

let knobs = null;
let shownFor = "";

function controls(vocabulary) {
  const turn = (name) => (value) => update({ [name]: value });
  // A rank is a matter of factors: the slider moves in powers.
  const most = Math.log2(Math.min(vocabulary, 1024));
  return card("The knobs", el("div", { class: "knobs" },
    range("temperature", state.temperature, { min: 0, max: 2, step: 0.05 }, turn("temperature")),
    range("min-p", state.min_p, { min: 0, max: 0.5, step: 0.005 }, turn("min_p")),
    range("top-k", state.top_k ? Math.log2(state.top_k) : most + 0.25, { min: 0, max: most + 0.25, step: 0.25, show: (v) => (v > most ? "all" : String(Math.round(2 ** v))) },
      (v) => update({ top_k: v > most ? 0 : Math.round(2 ** v) })),
    range("top-p", state.top_p, { min: 0.01, max: 1, step: 0.01 }, turn("top_p"))));
}

function masses(answer) {
  const kept = 1 - Object.values(answer.lost).reduce((sum, p) => sum + p, 0);
  const parts = [["kept", kept], ...Object.entries(answer.lost)].filter(([, p]) => p > 0.0005);
  return [el("div", { class: "masses" }, parts.map(([name, p]) => el("span", { class: `mass ${name}`, style: { flexGrow: p } }, p > 0.12 ? name : ""))),
    el("p", { class: "legend" }, `Of the probability after temperature: ${parts.map(([name, p]) => `${percent(p)} ${name === "kept" ? "is kept" : `falls to ${name}`}`).join(", ")}.`)];
}

function bars(answer, write) {
  const top = Math.max(...answer.candidates.map((c) => Math.max(c.model, c.tempered, c.drawn)));
  return el("div", { class: "candidates" }, answer.candidates.map((c) => el("div", { class: `candidate ${c.fate}${c.id === answer.chosen ? " drawn" : ""}` },
    el("button", { type: "button", class: "chip", title: `id ${c.id}: write it`, onclick: () => write(c.text) }, short(c.text, 16)),
    el("div", { class: "bars", title: `the model ${percent(c.model)}, after temperature ${percent(c.tempered)}, drawn with ${percent(c.drawn)}` },
      el("i", { class: "before", style: { width: `${(100 * c.tempered) / top}%` } }), el("i", { class: "after", style: { width: `${(100 * c.drawn) / top}%` } }),
      el("i", { class: "tick", style: { left: `${(100 * c.model) / top}%` } })),
    el("span", { class: "p" }, c.fate === "kept" ? percent(c.drawn) : "–"),
    el("span", { class: "why" }, c.fate === "kept" ? c.why : el("b", {}, `${c.fate}: `), c.fate === "kept" ? "" : c.why,
      " ", el("a", { href: "#", title: "How this logit was made", onclick: (event) => { event.preventDefault(); update({ panel: "arithmetic", value: `logits/${answer.position}/${c.id}` }); } }, `logit ${number(c.logit, 2)}`)))));
}

function draw(answer, tokens) {
  const chosen = answer.candidates.find((c) => c.id === answer.chosen);
  const write = (text) => {
    const raw = tokens.slice(0, answer.position + 1);
    const end = raw.at(-1)?.end ?? 0;
    update({ text: [...state.text].slice(0, end).join("") + text.replaceAll("\\n", "\n").replaceAll("\\t", "\t"), position: -1 });
  };
  const dice = el("button", { type: "button", class: "main", onclick: () => update({ uniform: Math.random() }) }, "Draw again");
  const name = chosen ? el("b", { class: "mono" }, visible(chosen.text)) : `id ${answer.chosen}`;
  return card(`After token ${answer.position}: ${short(tokens[answer.position].text)}`, masses(answer),
    el("p", { class: "caption" }, `${answer.kept.toLocaleString("en")} of ${answer.vocabulary.toLocaleString("en")} tokens are left; ${number(answer.entropy[0], 2)} bits before, ${number(answer.entropy[1], 2)} after. `,
      `The draw ${number(state.uniform, 3)} falls on `, name, ". ", dice, " ", chosen ? el("button", { type: "button", onclick: () => write(chosen.text) }, "Write it") : null),
    bars(answer, write), el("p", { class: "legend" }, "Light: after temperature. Solid: what is drawn from. Mark: the model's own probability. The likeliest 40 are shown."));
}

export default {
  id: "choice",
  short: "Next token",
  title: "What comes next",
  says: "The model gives every token of its vocabulary a number, the logit; temperature flattens or sharpens them, and min-p, top-k and top-p rule tokens out, in this order. Each candidate says which rule it fell to and by what numbers; one of the rest is drawn.",
  links: [page("learn/inference"), notebook("inference/01_sampling.ipynb"), source("tinylm-infer/src/tinylm/inference/sampling.py")],
  async show(root, changed, { point, tokens }, isMine) {
    const { position, temperature, top_k, top_p, min_p, uniform } = state;
    const answer = await ask("choice", "choice", { ...looked(), position, temperature, top_k, top_p, min_p, uniform });
    if (!answer || !isMine()) return;
    if (!knobs || shownFor !== point.model || !root.contains(knobs)) {
      knobs = controls(point.vocab_size);
      shownFor = point.model;
      replace(root, knobs, el("div", {}));
    }
    replace(root.lastChild, draw(answer, tokens));
  },
};
