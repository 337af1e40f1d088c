// Conversations and settings, kept in the browser: one entry a conversation, so that tabs do not
// overwrite each other's.

const PREFIX = "i3lm.chat.";
const SETTINGS = "i3lm.settings";
const KEY = "i3lm.key";

function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(name));
  } catch {
    return null;
  }
}

function write(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false; // full, or forbidden
  }
}

function sound(value) {
  const text = (t) => typeof t === "string";
  return (
    value && text(value.id) && text(value.title) && Array.isArray(value.messages) &&
    value.messages.every((m) => m && text(m.content) && (m.role === "user" || m.role === "assistant"))
  );
}

/** Return all conversations, the newest first. */
export function conversations() {
  const found = [];
  try {
    for (let i = 0; i < localStorage.length; i++) {
      const name = localStorage.key(i);
      const value = name.startsWith(PREFIX) ? read(localStorage, name) : null;
      if (sound(value)) found.push(value);
    }
  } catch {
    // forbidden: nothing is kept
  }
  return found.sort((a, b) => (b.changed ?? 0) - (a.changed ?? 0));
}

/** Return a conversation without a message; it is kept once it has one. */
export function fresh() {
  const id = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
  return { id, title: "", system: "", messages: [], seenFrom: 0, changed: Date.now() };
}

/** Keep a conversation; false where the browser cannot. */
export const save = (conversation) => write(localStorage, PREFIX + conversation.id, conversation);

/** Forget a conversation. */
export function remove(conversation) {
  try {
    localStorage.removeItem(PREFIX + conversation.id);
  } catch {
    // it never was there
  }
}

/** Say whether a `storage` event is about a conversation. */
export const concerns = (event) => event.key === null || event.key.startsWith(PREFIX);

/** Return temperature and length. */
export function settings() {
  const kept = read(localStorage, SETTINGS) ?? {};
  const number = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);
  return { temperature: number(kept.temperature, 0.5), tokens: number(kept.tokens, 256) };
}

/** Keep temperature and length. */
export const saveSettings = (value) => write(localStorage, SETTINGS, value);

/** The API key lasts as long as the tab. */
export const key = () => read(sessionStorage, KEY) ?? "";
export const saveKey = (value) => write(sessionStorage, KEY, value);
