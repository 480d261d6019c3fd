// Panel 6: a number, the vectors that made it, and the line that computed it. Every number leads on to its own making.

import { card, el, number, replace } from "./dom.js";
import { notebook, page, source } from "./links.js";
import { ask, looked, state, update } from "./state.js";

const trail = [];

// The name of a vector's number i; the heads of a token stand one behind the other.
function name(vector, i, headDim) {
  if (!vector.path) return null;
  return vector.path.replace("{h}", Math.floor(i / headDim)).replace("{}", vector.path.includes("{h}") ? i % headDim : i);
}

function numbers(vector, headDim) {
  const top = Math.max(...vector.numbers.map(Math.abs)) || 1;
  const cells = vector.numbers.map((x, i) => {
    const path = name(vector, i, headDim);
    const style = { background: `rgb(var(${x < 0 ? "--cold" : "--heat"}) / ${(0.7 * Math.abs(x) / top).toFixed(3)})` };
    const text = number(x, 3);
    return path ? el("button", { type: "button", class: "number", style, title: path, onclick: () => update({ value: path }) }, text)
      : el("span", { class: "number", style, title: `place ${i}` }, text);
  });
  return card(`${vector.name} (${vector.numbers.length})`, el("div", { class: "numbers" }, cells));
}

function starts(tokens, depth) {
  const t = state.position < 0 ? tokens.length + state.position : state.position;
  const b = Math.min(state.layer, depth - 1);
  const names = [`logits/${t}/0`, `final_norm/${t}/0`, `blocks.${b}.output/${t}/0`, `blocks.${b}.mlp/${t}/0`, `blocks.${b}.mlp.inner/${t}/0`,
    `blocks.${b}.attention.output/${t}/0`, `blocks.${b}.attention.pattern/${state.head}/${t}/0`, `blocks.${b}.attention.scores/${state.head}/${t}/0`, `embed/${t}/0`];
  const field = el("input", { type: "text", value: state.value || names[0], "aria-label": "Name of the number", onchange: () => update({ value: field.value.trim() }) });
  return card("Choose a number", field, el("div", { class: "player wrap" }, names.map((path) => el("button", { type: "button", onclick: () => update({ value: path }) }, path))));
}

export default {
  id: "arithmetic",
  short: "Arithmetic",
  title: "Where a number comes from",
  says: "Every number of the forward pass is a small sum over vectors, and one line of the program computed it. Choose a number: you see the vectors that went in, the same sum done again, and the line; the numbers in the vectors lead on to theirs.",
  links: [page("learn/torch"), notebook("model/01_a_neurons_gradient.ipynb"), source("tinylm-model/src/tinylm/model/tracing.py")],
  async show(root, changed, { point, tokens }, isMine) {
    const path = state.value || `logits/${state.position < 0 ? tokens.length + state.position : state.position}/0`;
    const head = starts(tokens, point.depth);
    let answer;
    try {
      answer = await ask("number", "number", { ...looked(), value: path });
    } catch (error) {
      replace(root, head, el("p", { class: "error", role: "alert" }, error.message));
      return;
    }
    if (!answer || !isMine()) return;
    if (trail.at(-1) !== path) trail.push(path);
    if (trail.length > 6) trail.shift();
    const back = el("div", { class: "player wrap" }, trail.slice(0, -1).map((before) => el("button", { type: "button", onclick: () => update({ value: before }) }, `‹ ${before}`)));
    const line = el("pre", { class: "source" }, el("span", {}, `${answer.file}:${answer.line}\n`), answer.text);
    replace(root, head, card(answer.path, el("p", { class: "big" }, number(answer.value, 6)),
      el("p", { class: "caption" }, el("b", { class: "mono" }, answer.formula), ` = ${number(answer.again, 6)} once more in float64; the difference is ${number(Math.abs(answer.value - answer.again), 9)}.`),
      el("p", { class: "legend" }, "The statement that computed it:"), line, back), answer.vectors.map((vector) => numbers(vector, point.head_dim)));
  },
};
