"use strict";
// The list of units: search, filters, order, pages.
(() => {
  const { data, node, count, when, span } = reelscribe;
  const PER_PAGE = 24;
  const by = (id) => document.getElementById(id);
  const state = { shown: [], page: 0 };

  const ORDERS = {
    worst: ["worst first", (a, b) => (a.score ?? 2) - (b.score ?? 2)],
    name: ["file and time", () => 0],
    problems: ["problems first", (a, b) => rank(b) - rank(a)],
    tokens: ["most tokens out", (a, b) => b.tokens_out - a.tokens_out],
    slow: ["slowest", (a, b) => (b.engine_seconds ?? 0) + (b.decode_seconds ?? 0) - (a.engine_seconds ?? 0) - (a.decode_seconds ?? 0)],
    long: ["longest", (a, b) => (b.seconds ?? 0) - (a.seconds ?? 0)],
  };
  const rank = (unit) => ({ ok: 0, partial: 1, failed: 2 })[unit.status] ?? 3;
  const FILTERS = {
    "by-status": (unit) => [unit.status],
    "by-task": (unit) => unit.tasks.map(([task]) => task),
    "by-answer": (unit) => unit.tasks.filter(([task]) => !by("by-task").value || task === by("by-task").value).map(([, status]) => status),
    "by-label": (unit) => unit.labels,
    "by-error": (unit) => (unit.error ? [unit.error] : []),
    "by-type": (unit) => [unit.type ?? "unreadable"],
    "by-notes": (unit) => (unit.num_notes ? ["with notes"] : []),
  };

  function options() {
    for (const [id, values] of Object.entries(FILTERS)) {
      const counts = new Map();
      data.units.forEach((unit) => new Set(values(unit)).forEach((value) => counts.set(value, (counts.get(value) || 0) + 1)));
      const sorted = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 500);
      by(id).append(...sorted.map(([value, number]) => node("option", { value }, `${value.slice(0, 60)} (${count(number)})`)));
      by(id).parentElement.hidden = counts.size === 0;
    }
    const names = Object.keys(ORDERS).filter((name) => name !== "worst" || data.evaluation);
    by("order").append(...names.map((name) => node("option", { value: name }, ORDERS[name][0])));
  }

  function apply() {
    const words = by("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = Object.entries(FILTERS).filter(([id]) => by(id).value);
    const numbers = data.units.map((_, number) => number).filter((number) => {
      const unit = data.units[number];
      return words.every((word) => unit.text.includes(word)) && wanted.every(([id, values]) => values(unit).includes(by(id).value));
    });
    const compare = ORDERS[by("order").value][1];
    state.shown = numbers.sort((a, b) => compare(data.units[a], data.units[b]) || a - b);
    state.page = 0;
    by("count").textContent = `${count(state.shown.length)} of ${count(data.units.length)} units`;
    show();
    reelscribe.chooseVideos(numbers, words, words.length + wanted.length > 0);
    reelscribe.drawCharts();
  }

  async function show() {
    const first = state.page * PER_PAGE;
    const cards = state.shown.slice(first, first + PER_PAGE).map(card);
    by("cards").replaceChildren(...(cards.length ? cards : [node("li", { class: "empty" }, "No unit matches the filters.")]));
    const pages = Math.ceil(state.shown.length / PER_PAGE);
    const turn = (step, text) => node("button", { type: "button", disabled: !(state.page + step >= 0 && state.page + step < pages), onclick: () => { state.page += step; show(); scrollTo(0, 0); } }, text);
    by("pager").replaceChildren(...(pages > 1 ? [turn(-1, "‹ Previous"), node("span", {}, `Page ${count(state.page + 1)} of ${count(pages)}`), turn(1, "Next ›")] : []));
  }

  function card(number) {
    const entry = data.units[number];
    const thumb = node("div", { class: "thumb" });
    const excerpt = node("div", { class: "excerpt" });
    const strip = node("div", { class: "strip", hidden: true });
    const times = entry.seconds === null ? "" : when(entry.start, entry.start + entry.seconds);
    const pills = [node("span", { class: `pill ${entry.status}` }, `${{ ok: "✓", partial: "◐", failed: "✕" }[entry.status] ?? ""} ${entry.status}`),
      entry.score !== null && node("span", { class: "pill" }, `score ${entry.score.toFixed(2)}`),
      entry.error && node("span", { class: "pill" }, entry.error),
      entry.num_notes > 0 && node("span", { class: "pill", title: "The file was unusual; the notes are in the unit." }, entry.num_notes === 1 ? "1 note" : `${entry.num_notes} notes`),
      entry.labels.slice(0, 4).map((label) => node("span", { class: "pill" }, label))];
    reelscribe.unit(number).then((unit) => {
      const part = unit.parts.find((each) => !each.problem);
      if (part) {
        const place = reelscribe.bestPlace(part, unit.marks);
        const marks = unit.parts.length > 1 ? [] : reelscribe.marksAt(part, place, unit.marks);
        thumb.replaceChildren(reelscribe.frame(part, place, { marks, label: `Frame of ${entry.name}` }),
          ...(entry.seconds === null ? [] : [node("span", { class: "badge" }, span(entry.seconds))]),
          ...(unit.parts.length > 1 ? [node("span", { class: "badge" }, `${unit.parts.length} media`)] : []));
      } else {
        const why = unit.parts.length ? "The media cannot be read now" : entry.type === "conversation" ? question(unit) : "The media could not be read";
        thumb.replaceChildren(node("div", { class: "none" }, why));
      }
      excerpt.textContent = unit.error ? unit.error.message : (unit.headlines[0] || unit.texts[0] || ["", ""])[1];
      if (unit.events.length && entry.seconds) {
        strip.hidden = false;
        strip.append(...unit.events.map((event) => node("i", { style: place100(event, entry.start, entry.seconds) })));
      }
    }, () => { excerpt.textContent = "The details of this unit are missing: is the folder complete?"; });
    return node("li", {}, node("button", { type: "button", class: "card", "data-unit": number, "aria-label": `${entry.name} ${times}, ${entry.status}`, onclick: () => reelscribe.open(number) },
      thumb, node("div", { class: "text" }, node("div", { class: "head" }, node("div", { class: "name", title: entry.name }, entry.name), times && node("time", {}, times)), excerpt, strip, node("div", { class: "pills" }, pills))));
  }

  // What a conversation without media asks.
  function question(unit) {
    const last = unit.turns.filter(([role]) => role === "user").pop();
    return last ? `“${last[1].slice(0, 200)}”` : "A conversation without images or videos";
  }

  // The CSS position of a time span on a line, in percent.
  function place100(event, start, seconds) {
    const left = Math.max(0, Math.min(1, (event.start - start) / seconds));
    const right = Math.max(left, Math.min(1, (event.end - start) / seconds));
    return { left: `${100 * left}%`, width: `${100 * (right - left)}%` };
  }

  // The number of the unit that is `step` places after this one in the shown list.
  function neighbour(number, step) {
    return state.shown[state.shown.indexOf(number) + step];
  }

  function filter(id, value) {
    by(id).value = value;
    apply();
    reelscribe.showTab("units");
  }

  addEventListener("DOMContentLoaded", () => {
    options();
    by("filters").addEventListener("input", apply);
    by("filters").addEventListener("submit", (event) => event.preventDefault());
    by("filters").addEventListener("reset", () => setTimeout(apply));
    addEventListener("keydown", (event) => {
      if (event.key === "/" && !/^(INPUT|SELECT)$/.test(event.target.tagName) && !document.querySelector("dialog[open]")) {
        event.preventDefault();
        by("search").focus();
      }
    });
    apply();
    const linked = location.hash.match(/^#unit-(\d+)$/);
    if (linked && data.units[linked[1]]) reelscribe.open(Number(linked[1]));
  });
  Object.assign(reelscribe, { shown: () => state.shown.map((number) => data.units[number]), neighbour, filter, place100 });
})();
