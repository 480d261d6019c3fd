// Panel 7: the same forward pass in the model's other rungs; what takes long is begun, watched, and can be cancelled.

import { card, el, number, replace } from "./dom.js";
import { notebook, page, source } from "./links.js";
import { ask, looked } from "./state.js";

let begun = null; // the work in the background: { key, id }; it goes on while another panel is looked at

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function time(seconds) {
  return seconds < 1 ? `${number(1e3 * seconds, seconds < 0.01 ? 2 : 0)} ms` : `${number(seconds, 1)} s`;
}

// Tenfold steps, from a microsecond to ten seconds a token: the rungs are thousands apart.
function bar(result) {
  const share = Math.min(Math.max((Math.log10(result.seconds / result.tokens) + 6) / 7, 0.01), 1);
  return el("div", { class: "bars", title: `${time(result.seconds / result.tokens)} a token` }, el("i", { class: "after", style: { width: `${100 * share}%` } }));
}

function told(result, count) {
  const cut = result.tokens < count ? ` for the first ${result.tokens} of ${count} tokens` : ` for ${count} tokens`;
  return [bar(result), el("p", {}, el("b", {}, time(result.seconds)), `${cut}, ${number(result.operations / result.seconds / 1e9, 2)} GFLOP/s. `,
    `Its logits are at most ${number(result.difference, 7)} from those of the other panels; the likeliest next token is the same after ${result.same} of ${result.tokens}.`)];
}

// Offers a rung that takes long; runs it in the background.
function offer(rung, asked, count) {
  const body = el("div", { class: "offer" });
  const say = (words, ...buttons) => replace(body, el("div", { class: "player" }, buttons, el("span", { role: "status" }, words)));
  const cut = rung.tokens < count ? `the first ${rung.tokens} of ${count} tokens` : `all ${count} tokens`;
  const expected = (rung.estimate * rung.tokens) / count;
  const key = JSON.stringify([asked, rung.name]);
  const idle = (words) => say(words, el("button", { type: "button", class: "main", onclick: () => follow() }, "Run it"));
  const cancel = () => begun?.key === key && ask("cancel", "rungs/cancel", { id: begun.id }).catch(() => null);
  async function follow() {
    try {
      let status = begun?.key === key ? await ask("rung", "rungs/status", { id: begun.id })
        : await ask("rung", "rungs/start", { ...asked, rung: rung.name, tokens: rung.tokens });
      if (!status) return;
      begun = { key, id: status.id };
      const meter = el("progress", { max: 1, value: 0, "aria-label": `Progress of the ${rung.name} rung` });
      say("", el("button", { type: "button", onclick: cancel }, "Cancel"), meter);
      while (status?.state === "running") {
        meter.value = status.fraction;
        body.querySelector("[role=status]").textContent = `${number(100 * status.fraction, 0)} % after ${number(status.seconds, 1)} s`;
        await wait(200);
        if (JSON.stringify(looked()) !== JSON.stringify(asked)) cancel();
        if (!body.isConnected) return;
        status = await ask("rung", "rungs/status", { id: begun.id });
      }
      if (!status) return;
      if (status.state === "done") replace(body, told(status.result, count));
      else {
        begun = null;
        idle(status.state === "failed" ? status.error : `Cancelled after ${number(status.seconds, 1)} s.`);
      }
    } catch (error) {
      begun = null;
      idle(error.message);
    }
  }
  idle(`About ${number(rung.estimate, 0)} s for the whole text, so only when you ask: ${cut}, about ${number(expected, 0)} s, in the background.`);
  if (begun?.key === key) follow();
  return body;
}

export default {
  id: "rungs",
  short: "Rungs",
  title: "The same in another rung",
  says: "The model is written several times, from single multiplications of Python floats up to fused kernels, and every version gives the same logits. Here your text goes through each rung that this model has: what it takes, and how far its logits are from those of the model that the other panels look at.",
  links: [page("ladders"), notebook("model/02_autograd.ipynb"), source("tinylm-model/src/tinylm/model/arrays/transformer.py")],
  async show(root, changed, { tokens }, isMine) {
    if (root.children.length && [...changed].every((name) => !["text", "point", "panel"].includes(name))) return;
    const asked = looked();
    const answer = await ask("rungs", "rungs", asked);
    if (!answer || !isMine()) return;
    replace(root, card("One forward pass, from the lowest rung to the highest", answer.map((rung) => el("div", { class: `rung${rung.why_not ? " absent" : ""}` },
      el("div", {}, el("b", {}, rung.name), el("p", { class: "legend" }, rung.says)),
      el("div", {}, rung.why_not ? el("p", {}, `Not here: ${rung.why_not}.`)
        : rung.result ? told(rung.result, tokens.length) : offer(rung, asked, tokens.length)))),
    el("p", { class: "legend" }, "Bars: time a token, each seventh of the width ten times the one before, from a microsecond to ten seconds. GFLOP/s: billions of multiplications and additions a second.")));
  },
};
