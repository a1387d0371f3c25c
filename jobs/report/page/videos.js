"use strict";
// Whole videos: summary, chapters and units of each.
(() => {
  const { data, node, count, clock, when, lanes } = reelscribe;
  const PER_PAGE = 12;
  const by = (id) => document.getElementById(id);
  const state = { shown: [], page: 0 };

  // shown: numbers of the units that match the filters. words: of the search.
  function chooseVideos(shown, words, isFiltered) {
    const units = new Set(shown);
    const numbers = data.videos.map((_, number) => number);
    state.shown = !isFiltered ? numbers : numbers.filter((number) => {
      const video = data.videos[number];
      return video.units.some((unit) => units.has(unit)) || (words.length > 0 && words.every((word) => video.text.includes(word)));
    });
    state.page = 0;
    drawVideos();
  }

  function drawVideos() {
    if (by("videos").hidden) return;
    const first = state.page * PER_PAGE;
    const panels = state.shown.slice(first, first + PER_PAGE).map(panel);
    by("whole").replaceChildren(...(panels.length ? panels : [node("p", { class: "empty" }, "No video matches the filters.")]));
    const pages = Math.ceil(state.shown.length / PER_PAGE);
    const turn = (step, text) => node("button", { type: "button", disabled: !(state.page + step >= 0 && state.page + step < pages), onclick: () => { state.page += step; drawVideos(); scrollTo(0, 0); } }, text);
    by("video-pager").replaceChildren(...(pages > 1 ? [turn(-1, "‹ Previous"), node("span", {}, `Page ${count(state.page + 1)} of ${count(pages)}`), turn(1, "Next ›")] : []));
  }

  function panel(number) {
    const video = data.videos[number];
    const failed = video.num_failed ? `, ${count(video.num_failed)} failed` : "";
    const inside = node("div", { class: "inside" });
    const link = node("a", { class: "original", target: "_blank", rel: "noopener noreferrer", hidden: true }, "Original ↗");
    reelscribe.video(number).then((found) => {
      inside.append(...content(video, found));
      if (found.href) { link.href = found.href; link.hidden = false; }
    }, () => inside.append(node("p", { class: "muted" }, "The details of this video are missing: is the folder complete?")));
    return node("article", { class: "panel video", id: `video-${number}` },
      node("header", {}, node("h2", { title: video.name }, video.name), node("span", { class: `pill ${video.status}` }, video.status),
        node("span", { class: "muted" }, `${when(video.start, video.end)} · ${count(video.units.length)} ${video.units.length === 1 ? "unit" : "units"}${failed}`), node("span", { class: "grow" }), link),
      inside);
  }

  function content(video, found) {
    const open = (unit) => node("button", { type: "button", onclick: () => reelscribe.open(video.units[unit]) });
    const units = video.units.map((unit) => data.units[unit]);
    const rows = units.map((unit, k) => {
      const button = open(k);
      button.append(node("time", {}, when(unit.start, unit.start + unit.seconds)), node("span", { class: `dot ${unit.status}`, title: unit.status }), node("span", { class: "said" }, found.excerpts[k] || "no caption"));
      button.setAttribute("aria-label", `${video.name} ${when(unit.start, unit.start + unit.seconds)}, ${unit.status}: ${found.excerpts[k]}`);
      return node("li", {}, button);
    });
    const chapters = found.events.map((event) => {
      const at = units.findIndex((unit) => unit.start <= event.start + 1e-6 && event.start < unit.start + unit.seconds);
      const button = open(Math.max(0, at));
      button.append(node("time", {}, when(event.start, event.end)), event.caption);
      return node("li", {}, button);
    });
    const part = (title, list) => node("section", {}, node("h3", {}, title), node("ul", { class: "list", tabindex: 0 }, list));
    return [
      found.summary && node("p", { class: "caption" }, found.summary),
      found.note && node("p", { class: "muted" }, `About the summary: ${found.note}`),
      line(video, units, found.events),
      node("div", { class: "columns" }, chapters.length > 0 && part(`Events of the whole video (${count(chapters.length)})`, chapters), part(`Units (${count(rows.length)})`, rows)),
    ].filter(Boolean);
  }

  // The units above, the events below, on one line of time.
  function line(video, units, events) {
    const seconds = Math.max(video.end - video.start, 1e-6);
    const spans = units.map((unit) => ({ start: unit.start, end: unit.start + unit.seconds }));
    const [above, below] = [lanes(spans), lanes(events)];
    const top = above.number * 14 + 10;
    const place = (span, y) => ({ ...reelscribe.place100(span, video.start, seconds), top: `${y}px` });
    const bars = spans.map((span, k) => node("button", { type: "button", class: `window ${units[k].status}`, title: when(span.start, span.end), "aria-label": `Unit ${when(span.start, span.end)}, ${units[k].status}`, style: place(span, 5 + 14 * above.lane[k]), onclick: () => reelscribe.open(video.units[k]) }));
    const boxes = events.map((event, k) => node("span", { class: "event", title: `${when(event.start, event.end)}: ${event.caption}`, style: place(event, top + 30 * below.lane[k]) }, event.caption));
    const axis = [0, 0.25, 0.5, 0.75, 1].map((share) => node("span", {}, clock(video.start + share * seconds, seconds < 20 ? 1 : 0)));
    return node("div", {}, node("div", { class: "timeline", style: { height: `${top + 30 * below.number}px` } }, bars, boxes), node("div", { class: "axis", "aria-hidden": "true" }, axis));
  }

  function showVideo(number) {
    if (!state.shown.includes(number)) by("filters").reset();
    setTimeout(() => { // after the filters' own reset
      state.page = Math.floor(state.shown.indexOf(number) / PER_PAGE);
      reelscribe.showTab("videos");
      by(`video-${number}`)?.scrollIntoView({ block: "start" });
    });
  }

  by("tab-videos").hidden = data.videos.length === 0;
  Object.assign(reelscribe, { chooseVideos, drawVideos, showVideo });
})();
