// Panel 7: the same forward pass in the model's other rungs.

import { card, el, number, replace } from "./dom.js";
import { page, source } from "./links.js";
import { ask, looked } from "./state.js";

export default {
  id: "rungs",
  short: "Rungs",
  title: "The same in another rung",
  says: "The model is written several times, each rung faster than the one below it, and all give the same logits. Here your text goes through NumPy arrays, tensors by hand and the transformer in torch.nn: how long each takes, and how far its logits are apart.",
  links: [page("ladders"), source("arrays/transformer.py", "tinylm-model/src/tinylm/model/arrays/transformer.py")],
  async show(root, changed, _, isMine) {
    const answer = await ask("rungs", "rungs", looked());
    if (!answer || !isMine()) return;
    const top = Math.max(...answer.map((rung) => rung.seconds));
    replace(root, card("One forward pass", answer.map((rung) => el("div", { class: "compare" }, el("span", {}, rung.name),
      el("div", { class: "bars" }, el("i", { class: "after", style: { width: `${(100 * rung.seconds) / top}%` } })), el("span", { class: "p" }, `${number(1e3 * rung.seconds, 1)} ms`))),
    el("p", { class: "caption" }, `The logits are at most ${number(Math.max(...answer.map((rung) => rung.difference)), 7)} apart.`)));
  },
};
