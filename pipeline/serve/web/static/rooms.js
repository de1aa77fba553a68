// The list of rooms; on a phone it is folded up.

import { button, el } from "./dom.js";

export function start({ element, props, watch, trigger }) {
  const words = props.words;
  const list = el("ul");
  const shelf = el("details", { open: window.innerWidth >= 800 }, el("summary", {}, words.rooms), list);
  element.replaceChildren(el("nav", { class: "rooms", "aria-label": words.rooms }, shelf));

  function show() {
    const { rooms = [], open = null } = props.value ?? {};
    const items = rooms.map((room) =>
      el("li", {}, button(room.name, () => trigger("opened", { room: room.id }), { "aria-current": room.id === open && "true", class: room.ended && "ended" })),
    );
    list.replaceChildren(...(items.length ? items : [el("li", {}, words.no_rooms)]));
  }

  watch("value", show);
  show();
}
