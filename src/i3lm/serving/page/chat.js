// The chat page: state, and what happens.

import * as server from "./server.js";
import * as store from "./store.js";
import { $, article, divider, element, iconButton, showFacts, welcome } from "./view.js";

const narrow = matchMedia("(max-width: 47rem)");
const settings = store.settings();
let all = store.conversations();
let now = all[0] ?? store.fresh();
let model = null;
let key = store.key();
let writing = null; // {conversation, controller} while a reply comes
let lost = false;
let undo = null;

// ---- the model and the connection

function say(state, text) {
  $("state").dataset.state = state;
  $("state-text").textContent = text;
}

function banner(text) {
  $("banner").hidden = !text;
  $("banner").textContent = text ?? "";
}

async function meet() {
  try {
    model = await server.model(key);
  } catch (error) {
    if (error instanceof server.Unreachable) return lose();
    say("lost", error.status === 401 ? "wants a key" : "refuses");
    banner(error.status === 401 ? "This server asks for an API key; give it in the settings." : error.message);
    if (error.status === 401) askForKey();
    return undefined;
  }
  const back = lost;
  lost = false;
  $("model").textContent = model.id;
  document.title = `${model.id} · i3lm chat`;
  $("tokens").max = Math.max(16, Math.floor(model.max_new_tokens / 8) * 8);
  showFacts(model);
  banner(null);
  say("ok", `ready · ${short(model.parameters)} parameters`);
  if (back) {
    announce("Connected again.");
    toast("Connected again");
  }
  if (!now.messages.length) show();
  update();
  return undefined;
}

const short = (n) => Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(n);

function lose() {
  if (!lost) announce("The server cannot be reached.");
  lost = true;
  say("lost", "not reachable");
  banner("The server cannot be reached: it may be restarting. Trying again; your conversations are safe.");
  update();
}

async function watch() {
  const asked = !document.hidden || lost;
  if (asked && !writing) {
    if (!(await server.alive())) lose();
    else if (lost) await meet();
  }
  setTimeout(watch, lost ? 1500 : 10000);
}

function askForKey() {
  $("key-box").hidden = false;
  openSettings();
  $("key").focus();
}

// ---- conversations

function name(conversation) {
  return conversation.title || "New conversation";
}

function list() {
  const shown = all.includes(now) ? all : [now, ...all];
  $("list").replaceChildren(...shown.map((one) => {
    const open = element("button", { kind: "name", type: "button", dir: "auto", text: name(one), onclick: () => choose(one) });
    const item = element("li", { kind: one === now ? "now" : "" }, open);
    if (one === now) open.setAttribute("aria-current", "true");
    if (all.includes(one))
      item.append(
        iconButton("edit", `Rename: ${name(one)}`, () => rename(one)),
        iconButton("trash", `Delete: ${name(one)}`, () => erase(one)),
      );
    return item;
  }));
}

function choose(conversation) {
  now = conversation;
  drawer(false);
  list();
  show();
  if (!narrow.matches) $("input").focus();
}

function keep(conversation) {
  conversation.changed = Date.now();
  if (!all.includes(conversation)) all.unshift(conversation);
  if (!store.save(conversation)) toast("The browser keeps no more: this conversation ends with the tab");
}

function rename(conversation) {
  $("name").value = conversation.title;
  $("rename").returnValue = "";
  $("rename").onclose = () => {
    const title = $("name").value.trim();
    if ($("rename").returnValue !== "yes" || !title) return;
    conversation.title = title;
    keep(conversation);
    list();
  };
  $("rename").showModal();
  $("name").select();
}

function erase(conversation) {
  if (writing?.conversation === conversation) writing.controller.abort();
  const at = all.indexOf(conversation);
  all = all.filter((one) => one !== conversation);
  conversation.erased = true;
  store.remove(conversation);
  if (now === conversation) now = all[Math.min(at, all.length - 1)] ?? store.fresh();
  list();
  show();
  $("new").focus();
  toast("Conversation deleted", () => {
    delete conversation.erased;
    all.splice(at, 0, conversation);
    store.save(conversation);
    choose(conversation);
  });
}

// ---- messages

const actions = { copy, retry, idle: () => !writing };

function show() {
  const parts = now.messages.map((message, i) => {
    const { made, finish } = article(message, actions);
    if (i < (now.seenFrom ?? 0)) made.classList.add("past");
    finish(i === now.messages.length - 1);
    return made;
  });
  if (now.seenFrom) parts.splice(now.seenFrom, 0, divider());
  $("log").replaceChildren(...(parts.length ? parts : [welcome(model?.id, (text) => send(text))]));
  const live = writing?.conversation === now ? writing : null;
  if (live) live.place();
  $("scroll").scrollTop = $("scroll").scrollHeight;
  update();
}

function update() {
  const busy = Boolean(writing);
  $("send").setAttribute("aria-label", busy ? "Stop the reply" : "Send");
  $("send").title = busy ? "Stop the reply (Esc)" : "Send (Enter)";
  $("send").querySelector("use").setAttribute("href", busy ? "#i-stop" : "#i-send");
  $("send").disabled = !busy && (lost || !model || !$("input").value.trim());
}

function send(text) {
  if (writing || lost || !model || !text.trim()) return;
  now.messages.push({ role: "user", content: text });
  if (!now.title) now.title = Array.from(text.slice(0, 200).trim().replace(/\s+/gu, " ")).slice(0, 60).join("");
  keep(now);
  all = [now, ...all.filter((one) => one !== now)];
  list();
  answer();
}

function retry() {
  if (writing) return toast("One reply at a time");
  if (lost || !model) return toast("The server cannot be reached yet");
  if (now.messages.at(-1)?.role === "assistant") now.messages.pop();
  return answer();
}

async function answer() {
  const conversation = now;
  const controller = new AbortController();
  const message = { role: "assistant", content: "" };
  const { sent, kept } = store.payload(conversation, model.context_window);
  const view = article(message, actions);
  view.made.classList.add("writing");
  const place = () => { $("log").append(view.made); view.grow(); };
  writing = { conversation, controller, place };
  show();
  say("ok", "writing");
  announce("The model is writing.");
  const asked = { messages: sent, temperature: settings.temperature, max_tokens: length() }; // null: its own
  const asking = performance.now();
  let ended = 0, drawn = 0;
  const draw = () => {
    drawn = 0;
    const bottom = atBottom();
    view.grow();
    if (bottom && now === conversation) $("scroll").scrollTop = $("scroll").scrollHeight;
  };
  try {
    for await (const piece of server.reply(asked, key, controller.signal)) {
      const choice = piece.choices[0];
      if (choice?.delta.content) {
        ended = performance.now();
        message.content += choice.delta.content;
        drawn ||= requestAnimationFrame(draw);
      }
      if (choice?.finish_reason) {
        // What the last reply said already is not said again.
        message.notices = piece.notices.filter((one) => !conversation.told?.includes(one));
        conversation.told = piece.notices;
        message.cut = choice.finish_reason === "length";
        conversation.seenFrom = piece.forgotten_messages
          ? kept[piece.forgotten_messages] ?? 0
          : kept[0] ?? 0;
      }
      if (piece.usage) message.tokens = piece.usage.completion_tokens;
    }
    // From the question on: the pieces of a short reply come all at once.
    if (message.tokens && ended) message.speed = (1000 * message.tokens) / (ended - asking);
  } catch (error) {
    if (controller.signal.aborted) message.stopped = true;
    else message.error = explain(error);
    if (error instanceof server.Unreachable) lose();
    else if (!(error instanceof server.Refusal) && !message.stopped) throw error;
  } finally {
    cancelAnimationFrame(drawn);
    writing = null;
    conversation.messages.push(message);
    if (!conversation.erased) keep(conversation);
    if (!lost) say("ok", message.speed ? `ready · ${Math.round(message.speed).toLocaleString("en")} tokens/s` : "ready");
    const bottom = atBottom();
    view.finish(true);
    if (now === conversation) {
      if (conversation.seenFrom) show();
      else if (bottom) $("scroll").scrollTop = $("scroll").scrollHeight;
    }
    list();
    update();
    announce([message.content.trim(), ...(message.notices ?? []), message.error, message.stopped && "Stopped."]
      .filter(Boolean).join(" "));
  }
}

function explain(error) {
  if (error instanceof server.Unreachable) return "The connection broke off. Try again once the server is back.";
  if (error.status === 401) {
    askForKey();
    return "The server asks for an API key; give it in the settings and try again.";
  }
  if (error.status === 503) return "The server has too much to do; try again in a moment.";
  return `The server did not answer: ${error.message}.`;
}

const length = () => settings.tokens && Math.min(settings.tokens, model.max_new_tokens);

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("The browser did not let us copy");
  }
}

// ---- the page

const atBottom = () => {
  const { scrollTop, scrollHeight, clientHeight } = $("scroll");
  return scrollHeight - scrollTop - clientHeight < 80;
};

function announce(text) {
  $("announce").textContent = text;
}

function toast(text, back = null) {
  clearTimeout(toast.timer);
  undo = back;
  $("toast-text").textContent = text;
  $("toast-undo").hidden = !back;
  $("toast").hidden = false;
  toast.timer = setTimeout(() => { $("toast").hidden = true; }, back ? 8000 : 2500);
}

function drawer(open) {
  const shut = narrow.matches && !open;
  document.body.classList.toggle("open", narrow.matches && open);
  $("side").inert = shut;
  $("menu").setAttribute("aria-expanded", String(!shut));
  if (narrow.matches && open) $("new").focus();
}

function fit() {
  $("input").style.height = "auto";
  $("input").style.height = `${Math.min($("input").scrollHeight, innerHeight * 0.4)}px`;
  update();
}

function openSettings() {
  $("temperature").value = settings.temperature ?? model?.default_temperature;
  $("tokens").value = settings.tokens ?? model?.default_max_tokens;
  $("system").value = now.system;
  $("key").value = key;
  outputs();
  if (!$("settings").open) $("settings").showModal();
}

function outputs() {
  const known = (id, text) => { $(`${id}-out`).textContent = model || settings[id] !== null ? text : ""; };
  known("temperature", Number($("temperature").value).toFixed(2));
  known("tokens", $("tokens").value);
}

$("settings").onclose = () => {
  store.saveSettings(settings);
  if (now.system !== $("system").value) {
    now.system = $("system").value;
    if (now.messages.length) keep(now);
  }
  if (key !== $("key").value.trim()) {
    key = $("key").value.trim();
    store.saveKey(key);
    meet();
  }
};

$("composer").onsubmit = (event) => {
  event.preventDefault();
  if (writing) return writing.controller.abort();
  const text = $("input").value;
  if (lost || !model || !text.trim()) return undefined;
  $("input").value = "";
  fit();
  return send(text);
};
$("input").oninput = fit;
$("input").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!writing) $("composer").requestSubmit();
};
document.onkeydown = (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("open")) {
    drawer(false);
    $("menu").focus();
  } else writing?.controller.abort();
};
$("new").onclick = () => { choose(now.messages.length ? store.fresh() : now); $("input").focus(); };
$("menu").onclick = () => drawer(!document.body.classList.contains("open"));
$("shade").onclick = () => drawer(false);
$("open-settings").onclick = openSettings;
$("open-about").onclick = () => $("about").showModal();
$("rename-no").onclick = () => $("rename").close("no");
for (const id of ["temperature", "tokens"])
  $(id).oninput = () => { settings[id] = Number($(id).value); outputs(); };
$("toast-undo").onclick = () => { $("toast").hidden = true; undo?.(); };
$("newest").onclick = () => { $("scroll").scrollTop = $("scroll").scrollHeight; $("input").focus(); };
$("scroll").onscroll = () => { $("newest").hidden = atBottom(); };
narrow.onchange = () => drawer(false);
document.onvisibilitychange = () => { if (!document.hidden && lost) meet(); };
addEventListener("storage", (event) => {
  if (!store.concerns(event) || writing) return;
  all = store.conversations();
  now = all.find((one) => one.id === now.id) ?? (now.messages.length ? all[0] ?? store.fresh() : now);
  list();
  show();
});

$("address").textContent = `${location.origin}/v1`;
drawer(false);
list();
show();
fit();
meet().then(() => setTimeout(watch, 1500));
