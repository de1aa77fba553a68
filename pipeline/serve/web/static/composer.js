// Where one writes. Enter sends, Shift+Enter makes a new line; Enter that ends a Hangul syllable does neither.
// Keyboards on a screen have no Shift+Enter: there Enter makes a new line, and the button sends.

import { button, el, fits } from "./dom.js";

// `sentiments`: what a reply can be told to answer to, where the model knows any.
export function composer(words, sentiments, { send, stop }) {
  const fingers = window.matchMedia("(pointer: coarse)").matches;
  const text = el("textarea", { id: "message", rows: 2, placeholder: words.write, "aria-describedby": fingers ? null : "message-hint" });
  const two = el("input", { type: "checkbox" });
  const feeling = el("select", {}, ...[["", words.sentiment_auto], ...sentiments.map((name) => [name, name])].map(([value, name]) => el("option", { value }, name)));
  const go = el("button", { class: "go" }, words.send);
  const halt = button(words.stop, stop, { class: "halt", hidden: true });
  const form = el("form", { class: "composer", onsubmit: submit },
    el("label", { for: "message", class: "unseen" }, words.write), text,
    el("div", { class: "row" }, el("label", { class: "tick" }, two, words.two),
      sentiments.length ? el("label", { class: "tick" }, words.sentiment, feeling) : null, halt, go),
    fingers ? null : el("p", { id: "message-hint", class: "hint" }, words.hint));
  let working = false;

  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !fingers && !event.shiftKey && !event.isComposing) submit(event);
  });

  // Gradio loads the page anew once a lost connection is back.
  window.addEventListener("beforeunload", (event) => text.value.trim() && event.preventDefault());

  function submit(event) {
    event.preventDefault();
    const wanted = text.value.trim();
    if (wanted && !working && fits(text, words)) send(wanted, two.checked);
  }

  return {
    element: form,
    focus: () => text.focus(),
    text: () => text.value,
    sentiment: () => feeling.value || null,
    clear: () => (text.value = ""),
    restore: (lost) => (text.value ||= lost),
    unless: (known) => text.value === known && (text.value = ""),
    busy(now) {
      working = now;
      go.hidden = now;
      halt.hidden = !now;
      if (now && document.activeElement === go) halt.focus();
    },
  };
}
