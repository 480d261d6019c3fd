// The frame: text, model, checkpoint and tokens above; the panels below. A panel is a module with `id`, `title`, `says`,
// `links` and `show(root, changed)`, which draws what the state (state.js) asks for.

import { el, replace, short, visible } from "./dom.js";
import { ask, looked, onChange, state, update } from "./state.js";
import tokens from "./tokens.js";
import layers from "./layers.js";
import choice from "./choice.js";
import writing from "./writing.js";
import history from "./history.js";
import arithmetic from "./arithmetic.js";
import rungs from "./rungs.js";

const panels = [tokens, layers, choice, writing, history, arithmetic, rungs];
const at = (id) => document.getElementById(id);
let points = []; // in order; what the server calls one by is its id
let shown = null;

const here = () => points.find((point) => point.id === state.point);

export const current = { tokens: [] };

function theme(name) {
  document.documentElement.dataset.theme = name;
}
const dark = matchMedia("(prefers-color-scheme: dark)");
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => {
  theme(dark.matches ? "dark" : "light");
  drawPanel(new Set(["theme"]));
});
at("theme").addEventListener("click", () => {
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  drawPanel(new Set(["theme"]));
});

function fail(error) {
  replace(at("stage"), el("p", { class: "error", role: "alert" }, error.message));
  shown = null;
}

function drawFrame() {
  const point = here();
  const mine = points.filter((other) => other.model === point.model);
  at("model").value = point.model;
  at("step").max = mine.length - 1;
  at("step").value = mine.indexOf(point);
  at("step-label").hidden = mine.length < 2;
  at("step-name").textContent = point.step === null ? "newest" : `step ${point.step.toLocaleString("en")}`;
  at("shape").textContent = [
    `${(point.parameters / 1e6).toFixed(1)} M parameters`, `${point.depth} blocks`,
    `${point.heads} heads of ${point.head_dim}`, `width ${point.width}`, `vocabulary ${point.vocab_size.toLocaleString("en")}`,
  ].join(" · ");
  if (at("text").value !== state.text) at("text").value = state.text;
  for (const tab of at("panels").children) {
    const chosen = tab.dataset.panel === state.panel;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function drawRibbon() {
  const count = current.tokens.length;
  const place = state.position < 0 ? count + state.position : state.position;
  replace(at("ribbon"), current.tokens.map((token, i) => el("span", {
    class: "chip", role: "option", "aria-selected": i === place, title: `token ${i}, id ${token.id}`,
    style: { background: `var(--t${i % 6})` }, onclick: () => update({ position: i }),
  }, visible(token.text))));
  const chosen = at("ribbon").children[place];
  if (chosen) at("ribbon").scrollLeft = chosen.offsetLeft - at("ribbon").offsetLeft - at("ribbon").clientWidth / 2;
}

async function readText() {
  try {
    const answer = await ask("frame", "tokens", looked());
    if (!answer) return false;
    Object.assign(current, { tokens: answer.read.tokens, tokenised: answer });
    if (state.position >= current.tokens.length) update({ position: -1 });
    at("note").textContent = answer.read.note ?? "";
    drawRibbon();
    return true;
  } catch (error) {
    current.tokens = [];
    drawRibbon();
    at("note").textContent = "";
    fail(error);
    return false;
  }
}

// Where a panel draws; old answers do not write over newer ones, since each drawing has a turn.
let turn = 0;
async function drawPanel(changed) {
  const panel = panels.find((one) => one.id === state.panel) ?? panels[0];
  const mine = ++turn;
  if (shown !== panel) {
    const links = el("div", { class: "links" }, panel.links.map(([name, address]) => el("a", { href: address, target: "_blank", rel: "noopener" }, name)));
    const root = el("div", { class: "panel" });
    replace(at("stage"), el("div", { class: "intro" }, el("h2", {}, panel.title), el("p", {}, panel.says), links), root);
    shown = panel;
    shown.root = root;
    changed = new Set([...changed, "panel"]);
  }
  const root = shown.root;
  root.classList.add("busy");
  try {
    await panel.show(root, changed, { points, point: here(), ...current }, () => mine === turn);
  } catch (error) {
    if (mine === turn) {
      replace(root, el("p", { class: "error", role: "alert" }, error.message));
      panel.failed?.();
    }
  }
  if (mine === turn) root.classList.remove("busy");
}

onChange(async (changed) => {
  if (!here()) state.point = points.at(-1).id;
  drawFrame();
  if (changed.has("text") || changed.has("point")) {
    if (!(await readText())) return;
  } else if (changed.has("position")) drawRibbon();
  document.title = `${panels.find((one) => one.id === state.panel)?.title ?? ""} · TinyLM explorer`;
  await drawPanel(changed);
});

function wire() {
  replace(at("panels"), panels.map((panel, i) => {
    const tab = el("button", { type: "button", role: "tab", onclick: () => update({ panel: panel.id }) }, el("i", {}, String(i + 1)), panel.short);
    tab.dataset.panel = panel.id;
    return tab;
  }));
  at("panels").addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const next = (panels.findIndex((one) => one.id === state.panel) + move + panels.length) % panels.length;
    update({ panel: panels[next].id });
    at("panels").children[next].focus();
  });
  at("ribbon").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const count = current.tokens.length;
    if (!move || !count) return;
    event.preventDefault();
    const place = state.position < 0 ? count + state.position : state.position;
    update({ position: Math.min(Math.max(place + move, 0), count - 1) });
  });
  let waiting;
  at("text").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => update({ text: at("text").value, position: -1, merge: -1, frame: -1 }), 250);
  });
  const models = [...new Map(points.map((point) => [point.model, point])).values()];
  replace(at("model"), models.map((point) => el("option", { value: point.model }, short(point.name, 40))));
  at("model-label").hidden = models.length < 2;
  at("model").addEventListener("change", () => {
    update({ point: points.findLast((point) => point.model === Number(at("model").value)).id, position: -1, layer: 0, head: 0, value: "", frame: -1 });
  });
  at("step").addEventListener("input", () => {
    const mine = points.filter((other) => other.model === here().model);
    update({ point: mine[Number(at("step").value)].id });
  });
  at("skip").addEventListener("click", (event) => {
    event.preventDefault();
    at("stage").focus();
  });
}

try {
  ({ points } = await ask("models", "models"));
  wire();
  update({ text: state.text });
} catch (error) {
  fail(error);
}
