// Elements of the page. Text is only ever set as text.

export const $ = (id) => document.getElementById(id);

/** Make an element: its class, its text, its children. */
export function element(tag, { kind, text, ...properties } = {}, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/** Make a button with an icon of the page's sprite. */
export function iconButton(icon, label, onclick) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${icon}`);
  svg.append(use);
  const button = element("button", { kind: "icon", type: "button", title: label, onclick }, svg);
  button.setAttribute("aria-label", label);
  return button;
}

/** Make a message; returns the element and functions that change it. */
export function article(message, actions) {
  const user = message.role === "user";
  const body = element("div", { kind: "body", dir: "auto" });
  const name = element("h3", { kind: "unseen", text: user ? "You" : "The model" });
  const made = element("article", { kind: message.role }, name, body);
  let shown = "";

  function grow() {
    const text = user ? message.content : message.content.trimStart();
    if (text.startsWith(shown) && body.firstChild) body.firstChild.appendData(text.slice(shown.length));
    else body.textContent = text;
    shown = text;
  }

  function finish(last) {
    grow();
    made.classList.remove("writing");
    made.querySelectorAll(".note, .foot").forEach((old) => old.remove());
    if (!user && !message.content.trim() && !message.error && !message.stopped)
      made.append(element("p", { kind: "fine", text: "The model had nothing to say." }));
    for (const notice of message.notices ?? [])
      made.append(element("p", { kind: "note", text: `${notice[0].toUpperCase()}${notice.slice(1)}.` }));
    if (message.error) made.append(element("p", { kind: "note bad", text: message.error }));
    if (user && !last) return;
    const foot = element("div", { kind: "foot" });
    if (!user && message.content.trim())
      foot.append(iconButton("copy", "Copy the reply", () => actions.copy(message.content.trim())));
    if (last && (!user || actions.idle()))
      foot.append(iconButton("retry", user ? "Ask again" : "Try again", actions.retry));
    const told = facts(message);
    if (told) foot.append(element("span", { text: told }));
    if (foot.firstChild) made.append(foot);
  }

  return { made, grow, finish };
}

function facts(message) {
  const told = [];
  if (message.stopped) told.push("stopped");
  if (message.cut) told.push("ended at its length limit");
  if (message.tokens) told.push(`${message.tokens.toLocaleString("en")} tokens`);
  if (message.speed) told.push(`${Math.round(message.speed).toLocaleString("en")} tokens/s`);
  return told.join(" · ");
}

/** What stands where no message does yet. */
export function welcome(name, start) {
  const starts = ["Hello!", "Who are you?", "What can you do?", "Tell me a story."];
  const buttons = starts.map((text) =>
    element("button", { type: "button", text, onclick: () => start(text) }),
  );
  return element(
    "div",
    { kind: "empty" },
    element("img", { src: "/page/icon.svg", alt: "" }),
    element("h2", { text: name ? `Talk with ${name}` : "Talk with your model" }),
    element("p", { text: "It runs on the computer that serves this page. Nothing goes anywhere else." }),
    element("div", { kind: "starts" }, ...buttons),
  );
}

/** The line above which the model no longer reads. */
export const divider = () =>
  element("p", { kind: "gone", text: "Above this line is more than the model can remember." });

/** Show what is known of the model. */
export function showFacts(model) {
  const rows = [
    ["Name", model.id],
    ["Parameters", model.parameters.toLocaleString("en")],
    ["Layers, width", model.layers && `${model.layers}, ${model.hidden_size}`],
    ["Window", `${model.context_window.toLocaleString("en")} tokens`],
    ["Vocabulary", model.vocabulary && `${model.vocabulary.toLocaleString("en")} tokens`],
    ["Weights", model.weights_bytes && `${(model.weights_bytes / 1e6).toFixed(1)} MB, ${model.weight_bits} bits`],
    ["Trained", model.step && `${model.step.toLocaleString("en")} steps`],
    ["Held-out text", model.held_out_bits_per_character &&
      `${model.held_out_bits_per_character.toFixed(2)} bits per character`],
    ["Longest reply", `${model.max_new_tokens.toLocaleString("en")} tokens`],
  ];
  const cells = rows.filter((row) => row[1]).flatMap(([name, value]) => [
    element("dt", { text: name }),
    element("dd", { text: value }),
  ]);
  $("facts").replaceChildren(...cells);
  $("card").textContent = model.card ?? "This folder has no card.";
}
