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

/** Return what is sent of a conversation, and where its messages stand in it. */
export function payload(conversation, window) {
  const messages = conversation.messages;
  const places = [];
  messages.forEach((message, i) => {
    const next = messages[i + 1];
    const answered = next?.role === "assistant" && next.content.trim();
    if (message.role === "user" && (answered || i === messages.length - 1)) places.push(i);
    if (message.role === "assistant" && message.content.trim() && places.at(-1) === i - 1) places.push(i);
  });
  // More than twice the window is never sent: a chunk has at most 3 characters.
  const room = 6 * window;
  let characters = 0;
  let first = places.length - 1;
  while (first > 0 && characters < room) characters += messages[places[--first]].content.length;
  if (first % 2) first--; // begin with the user's
  const kept = places.slice(Math.max(0, first));
  const sent = kept.map((i) => ({ role: messages[i].role, content: messages[i].content }));
  if (conversation.system.trim()) sent.unshift({ role: "system", content: conversation.system });
  return { sent, kept };
}

/** Say whether a `storage` event is about a conversation. */
export const concerns = (event) => event.key === null || event.key.startsWith(PREFIX);

/** Return temperature and length, null where the server's own hold. */
export function settings() {
  const kept = read(localStorage, SETTINGS) ?? {};
  const number = (value) => (Number.isFinite(value) ? value : null);
  return { temperature: number(kept.temperature), tokens: number(kept.tokens) };
}

/** Keep temperature and length. */
export const saveSettings = (value) => write(localStorage, SETTINGS, value);

/** The API key lasts as long as the tab. */
export const key = () => read(sessionStorage, KEY) ?? "";
export const saveKey = (value) => write(sessionStorage, KEY, value);
