// Panel 5: one text through every saved step, beside the run's loss and the flow of its gradients.

import { card, el, number, percent, replace, short, svg } from "./dom.js";
import { notebook, page, source } from "./links.js";
import { ask, looked, state, update } from "./state.js";

function curve(answer, chosen) {
  const known = answer.moments.filter((moment) => moment.loss !== null);
  const last = Math.max(1, ...answer.curve.map(([step]) => step), ...known.map((moment) => moment.step ?? 0));
  const step = (moment) => moment.step ?? last;
  const top = Math.max(...answer.curve.map(([, loss]) => loss), ...known.map((moment) => moment.loss), 1);
  const [width, height, left] = [980, 230, 40];
  const x = (s) => left + (s / last) * (width - left - 10);
  const y = (loss) => height - 22 - (loss / top) * (height - 36);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": "Training loss, and the loss of this text at every saved step" },
    [0, top / 2, top].flatMap((v) => [svg("line", { class: "grid", x1: left, x2: width, y1: y(v), y2: y(v) }), svg("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end" }, number(v, 1))]),
    [0, last / 2, last].map((s) => svg("text", { x: x(s), y: height - 5, "text-anchor": s === last ? "end" : "middle" }, number(s, 0))),
    svg("polyline", { class: "line train", points: answer.curve.map(([s, loss]) => `${x(s)},${y(loss)}`).join(" ") }),
    known.map((moment) => svg("circle", { class: `dot moment${moment.point === chosen ? " chosen" : ""}`, cx: x(step(moment)), cy: y(moment.loss), r: moment.point === chosen ? 7 : 5, onclick: () => update({ point: moment.point }) },
      svg("title", {}, `${moment.step === null ? "newest" : `step ${moment.step}`}: ${number(moment.loss, 3)} nats a token`))));
}

function flows(answer) {
  const top = Math.max(...answer.flows.flatMap((flow) => flow.values)) || 1;
  const level = (value) => (value ? Math.max(0, 1 + Math.log10(value / top) / 4) : 0);
  return el("div", { class: "scroll tall" }, el("table", { class: "flow" }, el("tbody", {}, answer.flows.map((flow) => el("tr", {}, el("th", {}, flow.name), flow.values.map((value, i) =>
    el("td", { title: `${flow.name}, step ${answer.flow_steps[i]}: ${number(value, 6)}`, style: { background: `rgb(var(--heat) / ${level(value).toFixed(3)})` } })))))));
}

function moments(answer) {
  return el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, answer.moments.map((moment) => el("tr", { class: moment.point === state.point ? "chosen" : "" },
    el("td", {}, el("button", { type: "button", onclick: () => update({ point: moment.point }) }, moment.step === null ? "newest" : `step ${moment.step}`)),
    moment.problem ? el("td", { class: "problem", colSpan: 4 }, moment.problem)
      : [el("td", {}, moment.loss === null ? "–" : `${number(moment.loss, 3)} nats`), moment.guesses.map((guess) => el("td", {}, el("span", { class: "chip", style: { background: `rgb(var(--heat) / ${(0.7 * guess.p).toFixed(2)})` } }, short(guess.text, 12)), ` ${percent(guess.p)}`))])))));
}

export default {
  id: "history",
  short: "Training",
  title: "As it learned",
  says: "The same text goes through every saved step of the run: how well each expects it, and what each would say next. Beside it stand the run's training loss and how large the gradients of each part were; the slider above goes to a step, in all panels.",
  links: [page("training"), notebook("experiments", "README.md"), source("_readers.py", "tinylm-obs/src/tinylm/observability/_readers.py")],
  async show(root, changed, { tokens }, isMine) {
    const position = state.position < 0 ? tokens.length + state.position : state.position;
    const answer = await ask("history", "history", { ...looked(), position });
    if (!answer || !isMine()) return;
    replace(root, card("Loss of the run (line) and of this text at each saved step (dots)", curve(answer, state.point)),
      card(`What each would say after token ${position}`, moments(answer)),
      answer.flows.length ? card("Flow of the gradients: root mean square of each parameter's, one column a measured step", flows(answer),
        el("p", { class: "legend" }, "Each shade is a factor: full colour is the largest, none a ten-thousandth of it.")) : card("Flow of the gradients", el("p", {}, "This model brings no run with histograms of its gradients.")));
  },
};
