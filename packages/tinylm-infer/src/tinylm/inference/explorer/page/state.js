// What is looked at, kept in the address: every view can be linked to. And the questions to the server.

const DEFAULTS = {
  text: "ROMEO:\nWhat light through yonder window breaks?",
  panel: "tokens", point: -1, position: -1, layer: 0, head: 0,
  temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0, uniform: 0.5, seed: 0, count: 24, value: "", merge: -1, frame: -1,
};

export const state = { ...DEFAULTS };
const listeners = [];

export function onChange(listener) {
  listeners.push(listener);
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    const value = given.get(name);
    const typed = typeof fallback === "number" ? Number(value) : value;
    state[name] = value === null || Number.isNaN(typed) ? fallback : typed;
  }
}

function address() {
  const given = new URLSearchParams();
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    if (state[name] !== fallback) given.set(name, state[name]);
  }
  return `#${given}`;
}

// Going to another panel is a step back in the browser's history; turning a knob is not.
export function update(changes) {
  const moved = "panel" in changes && changes.panel !== state.panel;
  Object.assign(state, changes);
  history[moved ? "pushState" : "replaceState"](null, "", address());
  listeners.forEach((listener) => listener(new Set(Object.keys(changes))));
}

readAddress();
window.addEventListener("popstate", () => {
  readAddress();
  listeners.forEach((listener) => listener(new Set(Object.keys(DEFAULTS))));
});

const running = new Map();

// The answer to a question; null where the same place has asked a newer one meanwhile. Errors are the server's words.
export async function ask(place, path, body) {
  running.get(place)?.abort();
  const controller = new AbortController();
  running.set(place, controller);
  try {
    const response = await fetch(`api/${path}`, {
      method: body ? "POST" : "GET",
      headers: { "Content-Type": "application/json" },
      body: body && JSON.stringify(body),
      signal: controller.signal,
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return running.get(place) === controller ? answer : null;
  } catch (error) {
    if (error.name === "AbortError") return null;
    throw error instanceof TypeError ? new Error("The explorer has ended: start `tinylm-infer explore` again.") : error;
  }
}

export function looked() {
  return { point: state.point, text: state.text };
}
