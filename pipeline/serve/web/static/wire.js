// Requests to the native API. The cookie says who asks.

const BUSY_TRIES = 8;

export class Refusal extends Error {
  constructor(status, body) {
    super(typeof body.detail === "string" ? body.detail : "");
    this.status = status;
    this.code = body.code;
  }
}

export async function ask(method, path, body, signal) {
  for (let tries = 1; ; tries += 1) {
    const response = await fetch(path, {
      method,
      signal,
      credentials: "same-origin",
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (response.ok) return response;
    const told = await response.json().catch(() => ({}));
    // A reply that was just stopped holds its room until the server has noticed.
    if (told.code !== "room_busy" || tries === BUSY_TRIES) throw new Refusal(response.status, told);
    await new Promise((resume) => setTimeout(resume, 250));
  }
}

export async function json(method, path, body, signal) {
  const response = await ask(method, path, body, signal);
  return response.status === 204 ? null : response.json();
}

// Calls piece(text) for every piece of a reply; resolves with what stands at its end.
export async function stream(method, path, body, signal, piece) {
  const response = await ask(method, path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refusal(502, {});
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const [, name, data] = /^event: (\w+)\ndata: (.*)$/s.exec(event) ?? [];
      if (!name) continue;
      const told = JSON.parse(data);
      if (name === "piece") piece(told.text);
      if (name === "error") throw new Refusal(500, told);
      if (name === "done") return told;
    }
  }
}
