"use strict";
// Shared by all parts of the page. Text becomes text nodes only: nothing here parses markup.
const reelscribe = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const nonce = document.currentScript.nonce;
  const SVG = "http://www.w3.org/2000/svg";

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(element.style, value); // the policy forbids style attributes
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }
  const node = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

  // The details of one piece of the units or videos: in this page, or in a script beside it.
  const pieces = new Map();
  const waiting = new Map();
  function piece(kind, number) {
    const key = `${kind}-${number}`;
    if (!pieces.has(key)) {
      const inside = document.getElementById(`piece-${key}`);
      pieces.set(key, inside ? Promise.resolve(JSON.parse(inside.textContent)) : new Promise((done, fail) => {
        waiting.set(key, done);
        const script = node("script", { src: `${kind}/${String(number).padStart(5, "0")}.js`, onerror: () => fail(new Error("is the folder complete?")) });
        script.nonce = nonce;
        document.head.append(script);
      }));
    }
    return pieces.get(key);
  }
  function arrived(kind, number, found) {
    waiting.get(`${kind}-${number}`)(found);
    waiting.delete(`${kind}-${number}`);
  }
  async function details(kind, number) {
    const found = await piece(kind, Math.floor(number / data.units_per_piece));
    return found[number % data.units_per_piece];
  }
  const unit = (number) => details("units", number);
  const video = (number) => details("videos", number);

  const count = (value) => Number(value).toLocaleString("en");
  function clock(seconds, digits = 2) {
    if (seconds === null || seconds === undefined) return "";
    const sign = seconds < 0 ? "-" : "";
    const total = Number(Math.abs(seconds).toFixed(digits)); // 59.999 is 1:00, not 0:60
    const [hours, minutes] = [Math.floor(total / 3600), Math.floor(total / 60) % 60];
    const rest = (total - 60 * Math.floor(total / 60)).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
    return hours ? `${sign}${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${sign}${minutes}:${rest}`;
  }
  // A time span, such as 0:08-0:18, with as many digits as its ends have.
  function when(start, end) {
    const digits = [0, 1, 2].find((some) => [start, end].every((time) => Math.abs(time - Number(time.toFixed(some))) < 0.005)) ?? 2;
    return `${clock(start, digits)}-${clock(end, digits)}`;
  }
  // The lane of each span, so that spans of one lane do not overlap, and the number of lanes.
  function lanes(spans) {
    const ends = [];
    const lane = Array(spans.length).fill(0);
    spans.map((span, k) => [span, k]).sort((a, b) => a[0].start - b[0].start).forEach(([span, k]) => {
      const free = ends.findIndex((end) => end <= span.start + 1e-9);
      lane[k] = free < 0 ? ends.length : free;
      ends[lane[k]] = span.end;
    });
    return { lane, number: ends.length };
  }
  function span(seconds) {
    if (seconds >= 5400) return `${(seconds / 3600).toFixed(1)} h`;
    if (seconds >= 90) return `${(seconds / 60).toFixed(1)} min`;
    return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  }

  const root = document.documentElement;
  const listeners = [];
  function theme(name) {
    root.dataset.theme = name;
    listeners.forEach((listener) => listener());
  }
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
  const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  return { data, node, svg, unit, video, arrived, count, clock, when, lanes, span, color, onTheme: (listener) => listeners.push(listener) };
})();
