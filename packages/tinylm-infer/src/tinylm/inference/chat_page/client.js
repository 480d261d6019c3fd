// The page's side of HTTP: one request, its server-sent events, and what went wrong in words that help.
// Does not know the page. The server's side is openai_api.py and server.py. Next: chat.js.
"use strict";

// An answer that did not come. `message` is for the reader; `act`: what the page can offer ("retry", "key", "reload").
class Trouble extends Error {
  constructor(message, { act = "retry", status = 0 } = {}) {
    super(message);
    Object.assign(this, { act, status });
  }
}

const GONE =
  `The server at ${location.host} does not answer. ` +
  "If it has ended, start it again (tinylm-infer serve CHECKPOINT), then try again.";

// Yields OpenAI's chunks until [DONE]. Throws Trouble, or the AbortError of `signal`.
async function* chunks(path, body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await fetch(path, options).catch((error) => {
    throw error.name === "AbortError" ? error : new Trouble(GONE);
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let waiting = ""; ; ) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Trouble(`The connection broke off in mid-answer. ${GONE}`);
    });
    if (done) throw new Trouble("The server ended the answer early.");
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a comment that keeps the line open
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Trouble(`The server broke off: ${chunk.error.message}`);
      yield chunk;
    }
  }
}

// A status other than 200, as Trouble. The server says in `error.message` what is wrong.
async function refusal(response) {
  const { status } = response;
  let told = response.statusText || `status ${status}`;
  try {
    told = (await response.json()).error.message;
  } catch {
    // something between the page and the server answered; its status has to do
  }
  if (status === 401) return new Trouble("The server asks for an API key, or another one than was sent.", { act: "key", status });
  if (status === 404) return new Trouble(`${told}. Reload the page to see what this server has.`, { act: "reload", status });
  if (status === 429) {
    const wait = response.headers.get("Retry-After");
    return new Trouble(`The server is busy${wait ? `: try again in ${wait} s` : ""}. It says: ${told}`, { status });
  }
  return new Trouble(`The server refused (${status}): ${told}`, { status });
}

// What is sent for a conversation whose last message waits for an answer: [path, body].
// A model that was not tuned for chat reads plain text, a turn a line, and continues the last one.
function request(model, tuned, system, messages, settings) {
  const body = { model, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens"]) body[name] = Number(settings[name]);
  for (const name of ["top_k", "min_p"]) if (Number(settings[name]) > 0) body[name] = Number(settings[name]);
  if (settings.seed !== "") body.seed = Number(settings.seed);
  const said = messages.map(({ role, content }) => ({ role, content }));
  if (system) said.unshift({ role: "system", content: system });
  if (tuned) return ["/v1/chat/completions", { ...body, messages: said }];
  const text = said.reduce((so, m) => so + (so && m.role === "user" ? "\n" : "") + m.content, "");
  return ["/v1/completions", { ...body, prompt: text }];
}

// Counts tokens and time. Until the server's own count comes at the end, a piece of text counts as a token.
class Measure {
  asked = performance.now();
  pieces = 0;
  usage = null;

  piece(text) {
    this.latest = performance.now();
    if (!text) return;
    this.first ??= this.latest;
    this.pieces += 1;
  }

  // `end`: how the answer ended, in words; "" while it is being written.
  words(end) {
    if (!this.pieces) return end;
    const tokens = this.usage?.completion_tokens ?? this.pieces;
    const seconds = (this.latest - this.first) / 1000;
    const told = [`${this.usage ? "" : "about "}${tokens} ${tokens === 1 ? "token" : "tokens"}`];
    if (tokens > 1 && seconds > 0) told.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
    if (this.usage) told.push(`first after ${((this.first - this.asked) / 1000).toFixed(2)} s`);
    return [...told, end].filter(Boolean).join(" · ");
  }
}
