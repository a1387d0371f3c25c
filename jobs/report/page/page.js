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

  // The details of one piece of the units: in this page, or in a script beside it.
  const pieces = new Map();
  const waiting = new Map();
  function piece(number) {
    if (!pieces.has(number)) {
      const inside = document.getElementById(`piece-${number}`);
      pieces.set(number, inside ? Promise.resolve(JSON.parse(inside.textContent)) : new Promise((done, fail) => {
        waiting.set(number, done);
        const script = node("script", { src: `units/${String(number).padStart(5, "0")}.js`, onerror: () => fail(new Error("is the folder complete?")) });
        script.nonce = nonce;
        document.head.append(script);
      }));
    }
    return pieces.get(number);
  }
  function arrived(number, units) {
    waiting.get(number)(units);
    waiting.delete(number);
  }
  async function unit(number) {
    const units = await piece(Math.floor(number / data.units_per_piece));
    return units[number % data.units_per_piece];
  }

  const count = (value) => Number(value).toLocaleString("en");
  function clock(seconds, digits = 2) {
    if (seconds === null || seconds === undefined) return "";
    const sign = seconds < 0 ? "-" : "";
    const total = Math.abs(seconds);
    const minutes = Math.floor(total / 60);
    return `${sign}${minutes}:${(total - 60 * minutes).toFixed(digits).padStart(digits ? digits + 3 : 2, "0")}`;
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

  return { data, node, svg, unit, arrived, count, clock, span, color, onTheme: (listener) => listeners.push(listener) };
})();
