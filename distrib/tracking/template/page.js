"use strict";
// Draws every curve as SVG. Text only ever enters the page as textContent.
const charts = JSON.parse(document.getElementById("data").textContent);
const HEIGHT = 190, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 22;
const firstStep = Math.min(...charts.map((c) => c.points[0][0]));
const lastStep = Math.max(...charts.map((c) => c.points[c.points.length - 1][0]), firstStep + 1);

function add(parent, tag, attributes = {}, text = "") {
  const svg = tag === "svg" || parent instanceof SVGElement;
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return parent.appendChild(node);
}

function short(value, units) {
  for (const [size, unit] of units) if (Math.abs(value) >= size) return +(value / size).toPrecision(3) + unit;
  return null;
}

function read(value, unit) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (unit === "bytes") return short(value, [[1e12, " TB"], [1e9, " GB"], [1e6, " MB"], [1e3, " kB"], [0, " B"]]);
  if (size >= 10000) return short(value, [[1e9, "B"], [1e6, "M"], [1e3, "k"]]);
  if (size < 0.001) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(+value.toPrecision(unit === "rate" ? 3 : 4));
}

// About `count` round numbers that cover [low, high].
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) found.push(i * step);
  return found;
}

function scale(chart) {
  const values = chart.points.concat(chart.smooth).map((p) => p[1]);
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (chart.log) {
    const [a, b] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const powers = Array.from({ length: b - a + 1 }, (_, i) => 10 ** (a + i));
    return { place: (v) => (Math.log10(v) - a) / (b - a || 1), ticks: powers };
  }
  if (low >= 0 && low < 0.6 * high) low = 0;
  if (high === low) [low, high] = high ? [low - Math.abs(low) / 2, high + Math.abs(high) / 2] : [0, 1];
  // So wide that ticks differ in the digits that `read` shows of them: three of some units, else four.
  const least = Math.abs(high) * (chart.unit === "bytes" || chart.unit === "rate" || high >= 10000 ? 0.04 : 0.004);
  const missing = Math.max(least - (high - low), 0);
  [low, high] = [low - missing / 2, high + missing / 2];
  const room = (high - low) * 0.05;
  [low, high] = [low === 0 ? 0 : low - room, high + room];
  return { place: (v) => (v - low) / (high - low), ticks: ticks(low, high, 4) };
}

function draw(chart) {
  const width = Math.max(chart.svg.clientWidth, 200);
  const { place, ticks: marks } = scale(chart);
  chart.x = (step) => LEFT + ((step - firstStep) / (lastStep - firstStep)) * (width - LEFT - RIGHT);
  chart.y = (value) => HEIGHT - BOTTOM - place(value) * (HEIGHT - TOP - BOTTOM);
  const path = (points) => "M" + points.map(([s, v]) => chart.x(s).toFixed(1) + " " + chart.y(v).toFixed(1)).join("L");
  chart.svg.replaceChildren();
  chart.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  for (const mark of marks) {
    add(chart.svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: chart.y(mark), y2: chart.y(mark) });
    add(chart.svg, "text", { x: LEFT - 8, y: chart.y(mark) + 4, "text-anchor": "end" }, read(mark, chart.unit));
  }
  const round = ticks(firstStep, lastStep, Math.min(6, width / 70)).filter(Number.isInteger);
  for (const step of [firstStep, ...round.filter((s) => chart.x(s) - chart.x(firstStep) > 36)]) {
    const end = chart.x(step) > width - 24;
    add(chart.svg, "text", { x: chart.x(step), y: HEIGHT - 4, "text-anchor": end ? "end" : "middle" }, read(step, "rate"));
  }
  const faint = chart.smooth.length ? " faint" : "";
  add(chart.svg, "path", { class: "raw" + faint, d: path(chart.points) });
  if (faint) add(chart.svg, "path", { class: "smooth", d: path(chart.smooth) });
  const single = chart.points.length === 1;
  const dots = single || (chart.dots && chart.points.length <= 60) ? chart.points : [];
  for (const [s, v] of dots) add(chart.svg, "circle", { class: "dot", cx: chart.x(s), cy: chart.y(v), r: 3.5 });
  chart.marker = add(chart.svg, "g");
}

// The point nearest to `step`, by bisection.
function at(points, step) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (points[middle][0] <= step) low = middle; else high = middle - 1;
  }
  const next = points[low + 1];
  return next && next[0] - step < step - points[low][0] ? next : points[low];
}

function say(chart, step) {
  const line = chart.smooth.length ? chart.smooth : chart.points;
  const point = at(line, step ?? Infinity);
  const value = read(point[1], chart.unit);
  const raw = chart.smooth.length && step !== null ? ` (${read(at(chart.points, step)[1], chart.unit)})` : "";
  chart.output.textContent = step === null ? value : `step ${point[0].toLocaleString("en")}: ${value}${raw}`;
  chart.marker.replaceChildren();
  if (step === null) return;
  const x = chart.x(point[0]);
  add(chart.marker, "line", { class: "cross", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM });
  add(chart.marker, "circle", { class: "dot", cx: x, cy: chart.y(point[1]), r: 4 });
}

function build(chart) {
  const figure = add(document.getElementById("charts"), "figure", { class: "card chart" });
  const caption = add(figure, "figcaption");
  add(caption, "span", {}, chart.title);
  const values = chart.points.concat(chart.smooth).map((p) => p[1]);
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  if (low > 0 && high > 10 * low) {
    const button = add(caption, "button", { type: "button", "aria-pressed": "false" }, "log");
    button.addEventListener("click", () => {
      chart.log = !chart.log;
      button.setAttribute("aria-pressed", String(chart.log));
      draw(chart);
    });
  }
  chart.output = add(caption, "output");
  chart.svg = add(figure, "svg", { role: "img", "aria-label": `${chart.title} by step` });
  chart.svg.addEventListener("pointermove", (event) => {
    const box = chart.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    const step = firstStep + Math.min(1, Math.max(0, share)) * (lastStep - firstStep);
    for (const each of charts) say(each, step);
  });
  chart.svg.addEventListener("pointerleave", () => charts.forEach((each) => say(each, null)));
  new ResizeObserver(() => { draw(chart); say(chart, null); }).observe(chart.svg);
  draw(chart);
  say(chart, null);
}

charts.forEach(build);
