// Panel 6: a number, the vectors that made it, and the line that computed it. Every number leads on to its own making.

import { card, el, number, replace, visible } from "./dom.js";
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
    return path ? el("button", { type: "button", class: "number", style, title: `${path}: how was it made?`, onclick: () => update({ value: path }) }, text)
      : el("span", { class: "number", style, title: `place ${i}` }, text);
  });
  return card(`${vector.name} (${vector.numbers.length})`, el("div", { class: "numbers" }, cells));
}

// A number's name in words: what it is, of which token, block and head.
function words(path, tokens) {
  const [name, ...places] = path.split("/");
  const [, block, part] = /^blocks\.(\d+)\.(.+)$/.exec(name) ?? [null, null, name];
  const token = (t) => `token ${t}${tokens[t] ? ` (${visible(tokens[t].text)})` : ""}`;
  const [first, second, third] = places;
  const where = block === null ? "" : `, in block ${block}`;
  const of = {
    embed: () => `Place ${second} of the embedding of ${token(first)}`,
    final_norm: () => `Place ${second} behind the final norm, ${token(first)}`,
    logits: () => `The logit of id ${second}: how strongly it is expected after ${token(first)}`,
    attention_norm: () => `Place ${second} before attention, normalised, ${token(first)}`,
    "attention.scores": () => `How well the query of ${token(second)} fits the key of ${token(third)}, head ${first}`,
    "attention.pattern": () => `How much ${token(second)} takes from ${token(third)}, head ${first}`,
    "attention.heads": () => `Place ${third} of what head ${first} brings to ${token(second)}`,
    "attention.output": () => `What attention adds at place ${second} of ${token(first)}`,
    middle: () => `The residual stream behind attention, place ${second} of ${token(first)}`,
    mlp_norm: () => `Place ${second} before the MLP, normalised, ${token(first)}`,
    "mlp.inner": () => `Hidden unit ${second} of the MLP, ${token(first)}`,
    mlp: () => `What the MLP adds at place ${second} of ${token(first)}`,
    output: () => `The residual stream behind the block, place ${second} of ${token(first)}`,
  }[part];
  return of ? `${of()}${where}.` : "";
}

function starts(tokens, depth) {
  const t = state.position < 0 ? tokens.length + state.position : state.position;
  const b = Math.min(state.layer, depth - 1);
  const names = [["a logit", `logits/${t}/0`], ["final norm", `final_norm/${t}/0`], [`block ${b}`, `blocks.${b}.output/${t}/0`], ["its MLP adds", `blocks.${b}.mlp/${t}/0`],
    ["a hidden unit", `blocks.${b}.mlp.inner/${t}/0`], ["its attention adds", `blocks.${b}.attention.output/${t}/0`], ["an attention weight", `blocks.${b}.attention.pattern/${state.head}/${t}/0`],
    ["a score", `blocks.${b}.attention.scores/${state.head}/${t}/0`], ["embedding", `embed/${t}/0`]];
  const field = el("input", { type: "text", value: state.value || names[0][1], "aria-label": "Name of the number", onchange: () => update({ value: field.value.trim() }) });
  return card(`Choose a number of token ${t}, or write its name: what / token / place`, field, el("div", { class: "player wrap" }, names.map(([label, path]) =>
    el("button", { type: "button", title: path, "aria-pressed": path === state.value, onclick: () => update({ value: path }) }, label))));
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
    replace(root, head, card(answer.path, el("p", { class: "legend" }, words(answer.path, tokens)), el("p", { class: "big" }, number(answer.value, 6)),
      el("p", { class: "caption" }, el("b", { class: "mono" }, answer.formula), ` = ${number(answer.again, 6)} once more in float64; the difference is ${number(Math.abs(answer.value - answer.again), 9)}.`),
      el("p", { class: "legend" }, "The statement that computed it; the underlined numbers below lead on:"), line, back), answer.vectors.map((vector) => numbers(vector, point.head_dim)));
  },
};
