"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const HEIGHT = 190, LEFT = 50, RIGHT = 10, TOP = 10, BOTTOM = 24;
const bytes = (v) => v >= 1e9 ? (v / 1e9).toPrecision(3) + " GB" : Math.round(v / 1e6) + " MB";
const count = (v) => v >= 1e9 ? short(v / 1e9) + "G" : v >= 1e6 ? short(v / 1e6) + "M" : v >= 1e4 ? short(v / 1e3) + "k" : short(v);
const short = (v) => String(Number(v.toPrecision(3)));
const clock = (s) => s < 60 ? short(s) + "s" : s < 3600 ? Math.floor(s / 60) + "m" + String(Math.round(s % 60)).padStart(2, "0")
  : Math.floor(s / 3600) + "h" + String(Math.round(s % 3600 / 60)).padStart(2, "0");
const AXES = { step: ["steps", count, 1], tokens: ["tokens", count, 1], seconds: ["time", clock, 60] };
const CHARTS = [
  { key: "loss", title: "Loss", unit: "nats a token", show: short, smooth: true },
  { key: "bits", title: "Held-out text", unit: "bits per character", show: short, evaluations: true },
  { key: "learning_rate", title: "Learning rate", unit: "", show: (v) => v === 0 ? "0" : v < 1e-3 ? v.toExponential(1) : short(v), zero: true },
  { key: "gradient_norm", title: "Gradient norm", unit: "", show: short, robust: true, zero: true },
  { key: "memory", title: "Memory", unit: "resident", show: bytes, zero: true },
  { key: "tokens_per_second", title: "Speed", unit: "tokens a second", show: count, robust: true, zero: true, smooth: true },
];
const NAMES = { step: "step ", tokens: "tokens ", seconds: "" };
let axis = "step";

function node(name, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (parent) parent.append(made);
  return made;
}

function smoothed(values) {
  const weight = Math.min(0.9, 1 - 20 / Math.max(25, values.length));
  let state = 0, total = 0;
  return values.map((v) => { state = weight * state + (1 - weight) * v; total = weight * total + 1 - weight; return state / total; });
}

function ticks(low, high, wanted, base) {
  const raw = (high - low) / wanted || 1;
  let unit = Math.pow(10, Math.floor(Math.log10(raw))), steps = [1, 2, 5, 10];
  if (base === 60 && high > 90) { unit = high > 5400 ? 3600 : 60; steps = [1, 2, 5, 10, 15, 30, 60, 120, 240, 600, 1440]; }
  const step = unit * (steps.find((s) => s * unit >= raw) || steps[steps.length - 1]);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6 && found.length < 20; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return found;
}

function series(chart) {
  return data.runs.map((run, index) => {
    const from = chart.evaluations ? run.evaluations : run;
    return { index: index % 8, name: run.name, x: from[axis], y: from[chart.key], low: run[chart.key + "_low"], high: run[chart.key + "_high"] };
  }).filter((s) => s.y.length);
}

function range(chart, lines) {
  let values = lines.flatMap((s) => s.y);
  if (chart.robust && values.length > 20) {
    values = values.slice().sort((a, b) => a - b);
    values = values.slice(0, Math.ceil(values.length * 0.985));
  }
  if (chart.key === "memory" && data.limit) values = values.concat(data.limit);
  let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (chart.zero) low = 0;
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [chart.zero ? 0 : Math.max(0, low - room), high + room];
}

function draw(figure, chart) {
  const lines = series(chart), out = figure.querySelector("output");
  figure.querySelector("svg")?.remove();
  const wide = Math.max(260, Math.round(figure.clientWidth - 22));
  const svg = node("svg", { viewBox: `0 0 ${wide} ${HEIGHT}`, role: "img", tabindex: 0 }, figure);
  if (!lines.length) {
    node("text", { x: wide / 2, y: HEIGHT / 2, "text-anchor": "middle" }, svg).textContent = "nothing yet";
    svg.setAttribute("aria-label", chart.title + ": nothing yet");
    return;
  }
  const last = lines[0].y[lines[0].y.length - 1];
  const rest = () => { out.textContent = lines.length === 1 ? chart.show(last) + " " + chart.unit : chart.unit; };
  svg.setAttribute("aria-label", lines.map((s) => `${chart.title} of ${s.name}: from ${chart.show(s.y[0])} to ${chart.show(s.y[s.y.length - 1])} ${chart.unit}`).join("; "));
  rest();
  const [low, high] = range(chart, lines);
  const right = Math.max(1e-9, lines.reduce((a, s) => Math.max(a, s.x[s.x.length - 1]), 0));
  const [, showX, base] = AXES[axis];
  const px = (v) => LEFT + v / right * (wide - LEFT - RIGHT);
  const py = (v) => TOP + (1 - (v - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const clip = "clip-" + chart.key;
  const box = node("clipPath", { id: clip }, node("defs", {}, svg));
  node("rect", { x: LEFT, y: TOP - 2, width: wide - LEFT - RIGHT + 4, height: HEIGHT - TOP - BOTTOM + 4 }, box);
  for (const v of ticks(low, high, 5)) {
    node("line", { class: "grid", x1: LEFT, x2: wide - RIGHT, y1: py(v), y2: py(v) }, svg);
    node("text", { x: LEFT - 6, y: py(v) + 4, "text-anchor": "end" }, svg).textContent = chart.show(v);
  }
  for (const v of ticks(0, right, wide / 80, base)) {
    const anchor = px(v) > wide - 24 ? "end" : "middle";
    node("text", { x: anchor === "end" ? wide - 2 : px(v), y: HEIGHT - 7, "text-anchor": anchor }, svg).textContent = showX(v);
  }
  const inner = node("g", { "clip-path": `url(#${clip})` }, svg);
  const path = (xs, ys) => xs.map((x, i) => (i ? "L" : "M") + px(x).toFixed(1) + " " + py(ys[i]).toFixed(1)).join("");
  if (chart.key === "memory" && data.limit) node("line", { class: "limit", x1: LEFT, x2: wide - RIGHT, y1: py(data.limit), y2: py(data.limit) }, inner);
  for (const s of lines) {
    if (s.low && lines.length === 1) {
      const back = s.x.map((_, i) => "L" + px(s.x[s.x.length - 1 - i]).toFixed(1) + " " + py(s.low[s.x.length - 1 - i]).toFixed(1)).join("");
      node("path", { class: `band f${s.index}`, d: path(s.x, s.high) + back + "Z" }, inner);
    }
    if (chart.smooth) {
      if (lines.length === 1) node("path", { class: `raw s${s.index}`, d: path(s.x, s.y) }, inner);
      s.drawn = smoothed(s.y);
    } else s.drawn = s.y;
    node("path", { class: `curve s${s.index}`, d: path(s.x, s.drawn) }, inner);
    if (chart.evaluations || s.x.length === 1) for (let i = 0; i < s.x.length; i++) node("circle", { class: `f${s.index}`, cx: px(s.x[i]), cy: py(s.y[i]), r: s.x.length > 60 ? 1.2 : 2.6 }, inner);
  }
  const cursor = node("g", { visibility: "hidden" }, svg);
  const rule = node("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM }, cursor);
  const dots = lines.map((s) => node("circle", { class: `f${s.index}`, r: 4 }, cursor));
  let at = null;
  const point = (x) => {
    at = Math.max(0, Math.min(right, x));
    const words = [];
    lines.forEach((s, k) => {
      let i = s.x.findIndex((v) => v >= at);
      if (i < 0) i = s.x.length - 1;
      if (i > 0 && at - s.x[i - 1] < s.x[i] - at) i--;
      dots[k].setAttribute("cx", px(s.x[i]));
      dots[k].setAttribute("cy", Math.max(TOP, Math.min(HEIGHT - BOTTOM, py(s.drawn[i]))));
      if (!k) { rule.setAttribute("x1", px(s.x[i])); rule.setAttribute("x2", px(s.x[i])); words.push(`${NAMES[axis]}${showX(s.x[i])}:`); }
      words.push((lines.length > 1 ? s.name + " " : "") + chart.show(s.y[i]));
    });
    out.textContent = words.join(lines.length > 1 ? "  " : " ");
    cursor.setAttribute("visibility", "visible");
  };
  const leave = () => { cursor.setAttribute("visibility", "hidden"); at = null; rest(); };
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect();
    point(((event.clientX - area.left) / area.width * wide - LEFT) / (wide - LEFT - RIGHT) * right);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    point(at === null ? right : at + move * Math.max(right / 60, right / lines[0].x.length));
  });
}

const holder = document.getElementById("charts");
const figures = CHARTS.map((chart) => {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption"), title = document.createElement("span");
  title.textContent = chart.title;
  caption.append(title, document.createElement("output"));
  figure.append(caption);
  holder.append(figure);
  return figure;
});
const drawAll = () => figures.forEach((figure, i) => draw(figure, CHARTS[i]));
for (const choice of document.querySelectorAll("input[name=axis]")) choice.addEventListener("change", () => { axis = choice.value; drawAll(); });
// Drawn at once, not at the browser's first frame: a page in the background or printed has none.
let known = holder.clientWidth;
drawAll();
new ResizeObserver(() => { if (holder.clientWidth !== known) { known = holder.clientWidth; drawAll(); } }).observe(holder);
if (data.live) setInterval(() => { if (!document.hidden && !document.querySelector("svg:hover, svg:focus")) location.reload(); }, 20000);
