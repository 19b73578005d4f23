"use strict";

const svg = document.getElementById("coordinates");
const marked = [...document.querySelectorAll("[data-trial]")];

// A trial's line and its row in the table light up together.
function light(trial) {
  for (const part of marked) part.classList.toggle("on", part.dataset.trial === trial);
}

for (const part of marked) {
  part.addEventListener("pointerenter", () => light(part.dataset.trial));
  part.addEventListener("pointerleave", () => light(null));
}

// What is brushed: by axis, the part of it that a line has to pass through.
const kept = new Map();

function heightAt(path, x) {
  let low = 0, high = path.getTotalLength();
  while (high - low > 0.2) {
    const middle = (low + high) / 2;
    if (path.getPointAtLength(middle).x < x) low = middle; else high = middle;
  }
  return path.getPointAtLength(low).y;
}

function sift() {
  for (const path of svg.querySelectorAll(".trial")) {
    const passes = [...kept].every(([x, [top, bottom]]) => {
      const y = heightAt(path, x);
      return y >= top - 1 && y <= bottom + 1;
    });
    for (const part of marked) {
      if (part.dataset.trial === path.dataset.trial) part.classList.toggle("left", !passes);
    }
  }
}

function brush(axis) {
  const x = Number(axis.dataset.x), line = axis.querySelector("line");
  const handle = axis.querySelector(".handle"), area = axis.querySelector(".brush");
  const [top, bottom] = [line.y1.baseVal.value, line.y2.baseVal.value];
  let start = null;
  const y = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return Math.min(bottom, Math.max(top, point.y));
  };
  const show = (from, to) => {
    const [low, high] = [Math.min(from, to), Math.max(from, to)];
    area.setAttribute("y", low);
    area.setAttribute("height", high - low);
    if (high - low < 3) kept.delete(x); else kept.set(x, [low, high]);
    sift();
  };
  handle.addEventListener("pointerdown", (event) => {
    start = y(event);
    if (event.isTrusted) handle.setPointerCapture(event.pointerId);
    show(start, start);
  });
  handle.addEventListener("pointermove", (event) => { if (start !== null) show(start, y(event)); });
  handle.addEventListener("pointerup", () => { start = null; });
}

if (svg) svg.querySelectorAll(".axis").forEach(brush);
