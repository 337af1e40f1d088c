// What is asked of the server.

/** The server cannot be reached. */
export class Unreachable extends Error {}

/** The server refuses; `status` says why. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("the server cannot be reached");
  }
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not in the usual form
  }
  throw new Refusal(response.status, message);
}

/** Say whether the server is there. */
export async function alive() {
  try {
    await ask("/health", "", { signal: AbortSignal.timeout(5000) });
    return true;
  } catch (error) {
    return error instanceof Refusal;
  }
}

/** Return the description of the model. */
export async function model(key) {
  const response = await ask("/v1/models", key);
  return (await response.json()).data[0];
}

/** Yield the pieces of a reply, as the server sends them. */
export async function* reply(asked, key, signal) {
  const response = await ask("/v1/chat/completions", key, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...asked, stream: true, stream_options: { include_usage: true } }),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Unreachable("the connection broke off");
    }
    if (part.done) throw new Unreachable("the connection broke off");
    held += part.value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const value = JSON.parse(event.slice(6));
      if (value.error) throw new Refusal(500, value.error.message);
      yield value;
    }
  }
}
