// Keeps the newest in view however the page grows (words that stream in, a font that arrives, a card, a turned phone),
// unless the reader has gone up to read something else.

const NEAR = 80; // pixels from the end within which one is reading the newest

export function newest(element) {
  const page = document.scrollingElement;
  let following = true, height = 0;

  function show() {
    following = true;
    element.scrollIntoView({ block: "end" });
  }

  window.addEventListener("scroll", () => {
    if (height) following = element.getBoundingClientRect().bottom - page.clientHeight < NEAR;
  }, { passive: true });
  window.addEventListener("resize", () => following && height && show());

  new ResizeObserver(([seen]) => {
    const hidden = !height; // behind another tab
    height = seen.contentRect.height;
    if (height && (following || hidden)) show();
  }).observe(element);

  return show;
}
