// Panels, knobs, key and theme. Changes go into `settings` and the current conversation, and are kept at once.
// The conversation itself is in chat.js, which runs before this file.
"use strict";

// On a narrow screen the panels lie over the conversation, which then takes no keys.
const narrow = matchMedia("(max-width: 62rem)");

// Opens one of the two panels and closes the other; null closes both. The focus goes in, and back to what opened it.
function panel(name) {
  document.querySelector("main").inert = narrow.matches && name !== null;
  for (const [id, opener] of [["sidebar", "menu"], ["settings", "knobs"]]) {
    const left = $(id).contains(document.activeElement);
    $(id).classList.toggle("open", id === name);
    $(opener).setAttribute("aria-expanded", String(id === name));
    if (id === name) $(id).querySelector("textarea, input, button").focus();
    else if (left && name === null) $(opener).focus();
  }
}

narrow.addEventListener("change", () => panel(null));
const toggle = (name) => panel($(name).classList.contains("open") ? null : name);

function openKey() {
  panel("settings");
  $("key").focus();
}

function fillOptions() {
  for (const field of $("options").querySelectorAll("[name]")) {
    field.value = settings[field.name];
    showValue(field);
  }
}

function showValue(field) {
  const shown = field.closest("label").querySelector(".value");
  if (shown) shown.textContent = Number(field.value).toFixed(2);
}

function darkNow() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

$("options").addEventListener("submit", (event) => event.preventDefault());
$("options").addEventListener("input", ({ target }) => {
  if (target.name) {
    settings[target.name] = target.value;
    showValue(target);
    store.write("tinylm.settings", settings);
  } else if (target.id === "key") sessionStorage.setItem("tinylm.key", target.value);
  else {
    current.system = target.value;
    if (current.messages.length) store.save(current);
    if (!writing) drawMessages();
  }
});
const clicks = {
  new: () => show(null),
  stop,
  menu: () => toggle("sidebar"),
  knobs: () => toggle("settings"),
  close: () => panel(null),
  scrim: () => panel(null),
  reset: () => {
    settings = { ...DEFAULTS };
    store.write("tinylm.settings", settings);
    fillOptions();
  },
  theme: () => {
    document.documentElement.dataset.theme = darkNow() ? "light" : "dark";
    store.write("tinylm.theme", document.documentElement.dataset.theme);
  },
};
for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
addEventListener("storage", () => drawConversations()); // another tab has changed something

const theme = store.read("tinylm.theme");
if (theme) document.documentElement.dataset.theme = theme;
$("key").value = sessionStorage.getItem("tinylm.key") ?? "";
fillOptions();
