// The chat page: draws the conversation and the settings, and asks for answers. What is kept is in store.js, HTTP in
// client.js. Text of the model and of the user goes into the document as text (textContent), never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const { model, context, parameters, tuned } = document.body.dataset;
const chat = tuned === "yes";

let current = store.conversations()[0] ?? store.blank();
let settings = store.settings();
let writing = null; // {conversation, controller} while an answer comes
let trouble = null; // {conversation, error}: why the last answer did not come

// ---- drawing ----

function element(tag, className, text, attributes = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function button(text, action, attributes = {}) {
  const made = element("button", "quiet", text, { type: "button", ...attributes });
  made.addEventListener("click", action);
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "use"));
  svg.firstChild.setAttribute("href", `#icon-${name}`);
  return svg;
}

function draw() {
  drawConversations();
  drawMessages();
  $("system").value = current.system;
}

function drawConversations() {
  $("conversations").replaceChildren(
    ...store.conversations().map((conversation) => {
      const item = element("li");
      const open = button(conversation.title || "New chat", () => show(conversation.id), { class: "title" });
      if (conversation.id === current.id) open.setAttribute("aria-current", "true");
      const rename = button("", () => renameIn(item, conversation), { class: "icon", "aria-label": `Rename ${conversation.title}` });
      const remove = button("", () => discard(conversation), { class: "icon", "aria-label": `Delete ${conversation.title}` });
      rename.append(icon("rename"));
      remove.append(icon("delete"));
      item.append(open, rename, remove);
      return item;
    }),
  );
}

function renameIn(item, conversation) {
  const field = element("input", "", undefined, { "aria-label": "Title", maxlength: 80 });
  field.value = conversation.title;
  const end = (keep) => {
    if (!field.isConnected) return;
    if (keep && field.value.trim()) change(conversation.id, { title: field.value.trim() });
    drawConversations();
  };
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter" || event.key === "Escape") end(event.key === "Enter");
  });
  field.addEventListener("blur", () => end(true));
  item.replaceChildren(field);
  field.select();
}

function drawMessages() {
  $("welcome").hidden = current.messages.length > 0;
  $("log").replaceChildren(...current.messages.map(drawMessage));
  if (current.system) $("log").prepend(element("p", "told", `System: ${current.system}`));
  const error = trouble?.conversation.id === current.id ? trouble.error : null;
  if (error) $("log").append(drawTrouble(error));
  const busy = writing !== null;
  $("log").setAttribute("aria-busy", String(busy));
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  toEnd();
}

function drawMessage(message, index) {
  const mine = message.role === "user";
  const drawn = element("article", message.role, undefined, { "aria-label": mine ? "You" : model });
  drawn.append(element("div", "text", message.content));
  const last = index === current.messages.length - 1;
  const waits = last && writing?.conversation === current;
  if (mine || waits) {
    drawn.classList.toggle("waits", waits);
    return drawn;
  }
  const foot = element("footer");
  foot.append(button("Copy", (event) => copy(message.content, event.target)));
  if (last) foot.append(button("Regenerate", regenerate));
  foot.append(element("span", "note", message.note ?? ""));
  drawn.append(foot);
  return drawn;
}

function drawTrouble(error) {
  const drawn = element("div", "trouble", undefined, { role: "alert" });
  drawn.append(element("p", "", error.message));
  if (error.act === "key") drawn.append(button("Enter the key", openKey));
  drawn.append(error.act === "reload" ? button("Reload", () => location.reload()) : button("Try again", regenerate));
  return drawn;
}

// What stands below the message field. It is read aloud only where it stays: not the counts of an answer that grows.
function say(text) {
  $("status").setAttribute("aria-live", writing ? "off" : "polite");
  $("status").textContent = store.broken ?? text;
}

// The end of the conversation stays in view unless the reader has scrolled away from it.
let following = true;
const toEnd = () => ($("scroll").scrollTop = $("scroll").scrollHeight);
$("scroll").addEventListener("scroll", ({ target: t }) => (following = t.scrollHeight - t.scrollTop - t.clientHeight < 80));
new ResizeObserver(() => following && toEnd()).observe($("scroll"));

async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
    from.textContent = "Copied";
  } catch {
    from.textContent = "Select and copy by hand"; // the browser lets only secure pages write there
  }
}

// ---- conversations ----

function keep(conversation) {
  conversation.changed = Date.now();
  store.save(conversation);
}

function change(id, fields) {
  const conversation = id === current.id ? current : store.conversations().find((c) => c.id === id);
  if (!conversation) return;
  Object.assign(conversation, fields);
  store.save(conversation);
}

function show(id) {
  const written = writing?.conversation;
  current = written?.id === id ? written : (store.conversations().find((c) => c.id === id) ?? store.blank(current.system));
  if (narrow.matches) panel(null);
  draw();
  say("");
  $("prompt").focus();
}

function discard(conversation) {
  if (!confirm(`Delete "${conversation.title || "New chat"}"? It is kept nowhere else.`)) return;
  if (writing?.conversation.id === conversation.id) stop();
  store.remove(conversation);
  if (conversation.id === current.id) current = store.conversations()[0] ?? store.blank();
  draw();
}

// ---- asking ----

function send() {
  const text = $("prompt").value;
  if (writing || !text.trim()) return;
  if (!$("options").checkValidity()) {
    panel("settings");
    $("options").reportValidity();
    return;
  }
  $("prompt").value = "";
  grow();
  current.title ||= text.trim().split("\n")[0].slice(0, 60);
  current.messages.push({ role: "user", content: text });
  answer(current);
}

function regenerate() {
  if (writing) return;
  if (current.messages.at(-1)?.role === "assistant") current.messages.pop();
  if (current.messages.length) answer(current);
}

function stop() {
  writing?.controller.abort();
}

// Asks, and writes the answer into `conversation` as it comes. Ends by itself, by stop(), or with `trouble`.
async function answer(conversation) {
  const message = { role: "assistant", content: "", note: "" };
  const asked = [...conversation.messages];
  conversation.messages.push(message);
  writing = { conversation, controller: new AbortController() };
  trouble = null;
  keep(conversation);
  draw();
  say("Waiting for the first token");
  const measured = new Measure();
  let end = "stopped";
  try {
    end = await write(conversation, message, asked, measured);
  } catch (error) {
    if (error.name !== "AbortError") {
      if (!(error instanceof Trouble)) console.error(error);
      trouble = { conversation, error: error instanceof Trouble ? error : new Trouble(`The page failed: ${error.message}`) };
    }
  }
  writing = null;
  if (!message.content) conversation.messages.splice(conversation.messages.indexOf(message), 1);
  message.note = measured.words(end);
  if (store.read(PREFIX + conversation.id)) keep(conversation); // unless it was deleted meanwhile
  draw();
  if (measured.usage) say(`${measured.usage.total_tokens.toLocaleString("en")} of ${Number(context).toLocaleString("en")} tokens of context`);
  else say("");
}

// Returns how the answer ended, in words. Where the context is full the oldest question and answer are left out.
async function write(conversation, message, asked, measured) {
  for (let from = 0; ; ) {
    try {
      const [path, body] = request(model, chat, conversation.system, asked.slice(from), settings);
      let end = "";
      for await (const chunk of chunks(path, body, $("key").value, writing.controller.signal)) {
        if (chunk.usage) measured.usage = chunk.usage;
        const choice = chunk.choices[0];
        if (!choice) continue;
        if (choice.finish_reason === "length") end = "token limit reached";
        const piece = (chat ? choice.delta.content : choice.text) ?? "";
        if (piece) add(conversation, message, piece);
        measured.piece(Boolean(piece));
        if (conversation === current) say(measured.words(""));
      }
      return [end, from && `context full: the oldest ${from} messages were left out`].filter(Boolean).join(" · ");
    } catch (error) {
      const full = error.status === 400 && /context/.test(error.message);
      if (!full || from + 2 >= asked.length) throw error;
      from += 2;
    }
  }
}

function add(conversation, message, piece) {
  message.content += piece;
  if (conversation !== current) return;
  $("log").querySelector("article.waits .text").append(piece);
  if (following) toEnd();
}

// ---- keys ----

function grow() {
  $("prompt").style.height = "auto"; // by script: a style attribute would be against the page's policy
  $("prompt").style.height = `${Math.min($("prompt").scrollHeight, innerHeight * 0.4)}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (writing) stop();
  else panel(null);
  $("prompt").focus();
});

document.title = `${model} · TinyLM`;
$("model").textContent = $("welcome-model").textContent = model;
$("welcome-facts").textContent =
  `${(parameters / 1e6).toFixed(1)} million parameters · ${Number(context).toLocaleString("en")} tokens of context`;
$("welcome-note").hidden = chat;
$("prompt").placeholder = chat ? "Write a message" : "Begin a text";
draw();
