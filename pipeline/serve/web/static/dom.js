// Elements out of names, properties and children. Text becomes text nodes: nothing anybody wrote is ever read as HTML.

const MOST = 20_000; // letters that the API takes at once

export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else if (key === "value") made.value = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Whether a text can be sent; one that is too long is told of. (A field that takes no more cuts what is pasted silently.)
export function fits(field, words) {
  field.addEventListener("input", () => field.setCustomValidity(""), { once: true });
  field.setCustomValidity([...field.value.trim()].length > MOST ? words.too_long : "");
  return field.reportValidity();
}

export function button(text, click, properties = {}) {
  return el("button", { type: "button", onclick: click, ...properties }, text);
}
