// Keeps the newest in view however the page grows (words that stream in, a font that arrives, a card, a turned phone),
// unless the reader has gone up to read something else or changes what was said.

import { el } from "./dom.js";

const NEAR = 80; // pixels from the end within which one is reading the newest

export function newest(element) {
  const end = el("div");
  let following = true, height = 0;
  element.append(end);

  function show() {
    following = true;
    element.scrollIntoView({ block: "end" });
  }

  // Looked at after what grew was followed: a scroll event would find the page grown and not yet followed.
  new IntersectionObserver((seen) => {
    if (height) following = seen.at(-1).isIntersecting;
  }, { rootMargin: `0px 0px ${NEAR}px 0px` }).observe(end);

  new ResizeObserver(([seen]) => {
    const hidden = !height; // behind another tab
    height = seen.contentRect.height;
    const editing = document.activeElement?.closest(".editor");
    if (height && (hidden || (following && !editing))) show();
  }).observe(element);
  window.addEventListener("resize", () => following && height && show());

  return show;
}
