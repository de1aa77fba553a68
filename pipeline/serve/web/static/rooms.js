// The list of rooms; on a phone it is folded up and says which one is open.

import { button, el } from "./dom.js";

export function start({ element, props, watch, trigger }) {
  const words = props.words;
  const wide = () => window.innerWidth >= 800;
  const list = el("ul");
  const here = el("span", { class: "here" });
  const more = button(words.more_rooms, () => trigger("more", {}), { class: "more", hidden: true });
  const shelf = el("details", { open: wide() }, el("summary", {}, words.rooms, here), list, more);
  element.replaceChildren(el("nav", { class: "rooms", "aria-label": words.rooms }, shelf));

  function choose(room) {
    if (!wide()) shelf.open = false;
    trigger("opened", { room: room.id });
  }

  function show() {
    if (!props.value) return;
    const { rooms, open, more: others } = props.value;
    const items = rooms.map((room) =>
      el("li", {}, button(room.name, () => choose(room), { "aria-current": room.id === open && "true", class: room.ended && "ended" })),
    );
    list.replaceChildren(...(items.length ? items : [el("li", {}, words.no_rooms)]));
    here.textContent = rooms.find((room) => room.id === open)?.name ?? "";
    more.hidden = !others;
  }

  watch("value", show);
  show();
}
