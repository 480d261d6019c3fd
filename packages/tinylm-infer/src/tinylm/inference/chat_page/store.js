// What the browser keeps (localStorage): each conversation under a key of its own, so that two tabs do not overwrite
// each other's, and the settings. Does not draw anything and sends nothing. Next: chat.js.
"use strict";

const DEFAULTS = { temperature: 0.8, top_p: 1, min_p: 0, top_k: 0, max_tokens: 512, seed: "" };
const PREFIX = "tinylm.conversation.";

const store = {
  broken: null, // why nothing can be kept, in words; null where all is well

  // Newest first. {id, title, system, changed, messages: [{role, content, note}]}
  conversations() {
    const found = [];
    for (let i = 0; i < localStorage.length; i++) {
      const name = localStorage.key(i);
      if (!name.startsWith(PREFIX)) continue;
      const value = this.read(name);
      if (value && value.format === 1 && Array.isArray(value.messages)) found.push(value);
    }
    return found.sort((a, b) => b.changed - a.changed);
  },

  blank(system = "") {
    return { format: 1, id: Date.now().toString(36) + Math.random().toString(36).slice(2, 8), title: "", system, changed: Date.now(), messages: [] };
  },

  save(conversation) {
    this.write(PREFIX + conversation.id, conversation);
  },

  remove(conversation) {
    localStorage.removeItem(PREFIX + conversation.id);
  },

  settings() {
    return { ...DEFAULTS, ...this.read("tinylm.settings") };
  },

  read(name) {
    try {
      return JSON.parse(localStorage.getItem(name));
    } catch {
      return null; // not ours, or damaged
    }
  },

  write(name, value) {
    try {
      localStorage.setItem(name, JSON.stringify(value));
      this.broken = null;
    } catch {
      this.broken = "This browser has no room left to keep conversations: delete some.";
    }
  },
};
