// Panel 5: one text through every saved step, beside the run's loss and the flow of its gradients.

import { axes, card, el, number, percent, replace, short, svg, ticks, wide } from "./dom.js";
import { notebook, page, source } from "./links.js";
import { ask, looked, state, update } from "./state.js";

function curve(answer, chosen) {
  const known = answer.moments.filter((moment) => moment.loss !== null);
  const last = Math.max(1, ...answer.curve.map(([step]) => step), ...known.map((moment) => moment.step ?? 0));
  const step = (moment) => moment.step ?? last;
  const top = Math.max(...answer.curve.map(([, loss]) => loss), ...known.map((moment) => moment.loss), 1);
  const [width, height, left] = [wide(), 250, 40];
  const x = (s) => left + (s / last) * (width - left - 16);
  const bottom = height - 36;
  const y = (loss) => bottom - (loss / top) * (bottom - 18);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": "Training loss, and the loss of this text at every saved step" },
    axes({ width, height, left }, y, top, ticks(last).filter(Number.isInteger).map((s) => [x(s), number(s, 0)]), ["step", "nats a token"]),
    known.filter((moment) => moment.point === chosen).map((moment) => svg("line", { class: "here", x1: x(step(moment)), x2: x(step(moment)), y1: 14, y2: bottom })),
    svg("polyline", { class: "line train", points: answer.curve.map(([s, loss]) => `${x(s)},${y(loss)}`).join(" ") }),
    known.map((moment) => svg("circle", { class: `dot moment${moment.point === chosen ? " chosen" : ""}`, cx: x(step(moment)), cy: y(moment.loss), r: moment.point === chosen ? 7 : 5, onclick: () => update({ point: moment.point }) },
      svg("title", {}, `${moment.step === null ? "newest" : `step ${moment.step}`}: ${number(moment.loss, 3)} nats a token`))));
}

// Parameters in the model's order: the embedding, the blocks, what stands behind them.
function order(name) {
  const block = /^blocks\.(\d+)/.exec(name);
  return block ? Number(block[1]) : name.startsWith("embed") || name.startsWith("positions") ? -1 : Infinity;
}

function flows(answer, chosen) {
  const sizes = answer.flows.flatMap((flow) => flow.values).filter((value) => value > 0);
  const [low, high] = [Math.min(...sizes), Math.max(...sizes)];
  const level = (value) => (value ? 0.06 + (0.94 * Math.log(value / low)) / (Math.log(high / low) || 1) : 0);
  // The measured step nearest to the one that is looked at.
  const step = answer.moments.find((moment) => moment.point === chosen)?.step ?? Infinity;
  const far = (s) => Math.abs(Math.min(step, 1e15) - s);
  const here = answer.flow_steps.reduce((best, s, i) => (far(s) < far(answer.flow_steps[best]) ? i : best), 0);
  const rows = [...answer.flows].sort((a, b) => order(a.name) - order(b.name)).map((flow) => el("tr", {}, el("th", {}, flow.name), flow.values.map((value, i) =>
    el("td", { class: i === here ? "here" : "", title: `${flow.name}, step ${answer.flow_steps[i]}: ${number(value, 6)}`, style: { background: `rgb(var(--heat) / ${level(value).toFixed(3)})` } }))));
  return card("Flow of the gradients: root mean square of each parameter's", el("div", { class: "scroll tall" }, el("table", { class: "flow" }, el("tbody", {}, rows))),
    el("p", { class: "legend" }, `One column a measured step, ${answer.flow_steps[0]} to ${answer.flow_steps.at(-1)}; framed is the one nearest to the checkpoint above. The colours go by factors from ${number(low, 6)} (palest) to ${number(high, 6)}.`));
}

function moments(answer) {
  return el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, answer.moments.map((moment) => el("tr", { class: moment.point === state.point ? "chosen" : "" },
    el("td", {}, el("button", { type: "button", onclick: () => update({ point: moment.point }) }, moment.step === null ? "newest" : `step ${moment.step}`)),
    moment.problem ? el("td", { class: "problem", colSpan: 2 }, moment.problem)
      : [el("td", {}, moment.loss === null ? "–" : `${number(moment.loss, 3)} nats`), el("td", {}, el("div", { class: "guesses" }, moment.guesses.map((guess) =>
        el("span", {}, el("span", { class: "chip", style: { background: `rgb(var(--heat) / ${(0.5 * guess.p).toFixed(2)})` } }, short(guess.text, 12)), ` ${percent(guess.p)}`))))])))));
}

export default {
  id: "history",
  short: "Training",
  title: "As it learned",
  says: "The same text goes through every saved step of the run: how well each expects it, and what each would say next. Beside it stand the run's training loss and how large the gradients of each part were; the slider above goes to a step, in all panels.",
  links: [page("learn/training"), notebook("training/01_sgd_adam_muon.ipynb"), source("tinylm-train/src/tinylm/training/trainer.py")],
  async show(root, changed, { points, tokens }, isMine) {
    const position = state.position < 0 ? tokens.length + state.position : state.position;
    const answer = await ask("history", "history", { ...looked(), position });
    if (!answer || !isMine()) return;
    answer.moments = answer.moments.filter((moment) => points.some((point) => point.id === moment.point)); // not what another tab found
    const alone = answer.moments.length === 1 && !answer.curve.length && answer.moments[0].loss !== null;
    const loss = answer.moments[0]?.loss;
    replace(root, alone ? card("Loss of this text", el("p", { class: "big" }, `${number(loss, 3)} nats a token`), el("p", { class: "caption" }, `As if each next token were one of ${number(Math.exp(loss), 0)} equally likely ones.`))
      : card("Loss of the run (line) and of this text at each saved step (dots)", curve(answer, state.point)),
    card(`What each would say after token ${position}`, moments(answer)),
    answer.flows.length ? flows(answer, state.point) : card("Loss and gradients of the run", el("p", { class: answer.problem ? "problem" : "" }, answer.problem ? answer.problem : answer.curve.length ? "The run holds no histograms of its gradients." : "No run stands beside this model, so its training cannot be shown: `tinylm-train pretrain` writes one into its checkpoint directory.")));
  },
};
