// Two replies to one message, of which one is to be taken.

import { button, el } from "./dom.js";
import { bubble } from "./turns.js";

// `take(pair, "a" or "b")`; a pair without it was left behind: its first reply is the one that is kept. `ended`: nothing
// else can be said in its room.
export function two(pair, words, { take, ended }) {
  const said = bubble("you", words, pair.message);
  if (!take) return el("li", { class: "turn" }, said, bubble("it", words, pair.a));
  const options = ["a", "b"].map((name) => {
    const label = name === "a" ? words.first : words.second;
    const taking = button(words.take, () => take(pair, name), { "aria-label": `${label}: ${words.take}` });
    return el("section", { "aria-label": label }, el("h3", {}, label), el("p", {}, pair[name]), taking);
  });
  const introduction = pair.introduction ? el("p", { class: "note" }, pair.introduction) : null;
  const question = el("h2", { tabindex: -1 }, words.choose);
  return el("li", { class: "turn" }, introduction, said, el("div", { class: "two" }, question, ...options, ended ? null : el("p", { class: "hint" }, words.choose_not)));
}
