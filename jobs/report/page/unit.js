"use strict";
// One unit: its frames with their marks, its timeline, and its prompts and answers.
(() => {
  const { data, node, clock, count, when } = reelscribe;
  const TITLES = { caption: "Caption", chat: "Answer", ocr: "Text" };
  const title = (task) => TITLES[task] ?? task;
  const dialog = document.getElementById("unit");
  const quiet = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let view = null; // {number, unit, part, place, kinds, playing}

  async function open(number) {
    const unit = await reelscribe.unit(number);
    stop();
    const part = Math.max(0, unit.parts.findIndex((each) => !each.problem));
    const kinds = new Set(unit.marks.map((mark) => mark.kind));
    view = { number, unit, part, place: 0, kinds, gold: true, playing: null, refresh: () => {} };
    if (unit.parts[part] && !unit.parts[part].problem) view.place = reelscribe.bestPlace(unit.parts[part], unit.marks);
    dialog.replaceChildren(content());
    if (!dialog.open) dialog.showModal();
    history.replaceState(null, "", `#unit-${number}`);
    view.refresh();
    dialog.querySelector(".close").focus();
  }

  function content() {
    const { unit, number } = view;
    const entry = data.units[number];
    const video = data.videos.findIndex((each) => each.units.includes(number));
    const step = (by, text, name) => node("button", { type: "button", class: "plain", "aria-label": name, title: name, disabled: reelscribe.neighbour(number, by) === undefined, onclick: () => turn(by) }, text);
    return node("div", { class: "unit" },
      node("header", {},
        node("h2", { id: "unit-title", title: entry.name }, node("span", { class: "file" }, entry.name), entry.seconds !== null && node("time", {}, ` ${when(entry.start, entry.start + entry.seconds)}`)),
        node("span", { class: `pill ${entry.status}` }, entry.status),
        entry.score !== null && node("span", { class: "pill" }, `score ${entry.score.toFixed(2)}`),
        node("span", { class: "grow" }),
        video >= 0 && node("button", { type: "button", class: "plain whole", onclick: () => { dialog.close(); reelscribe.showVideo(video); } }, "Whole video"),
        step(-1, "‹", "Previous unit (K)"), step(1, "›", "Next unit (J)"),
        node("button", { type: "button", class: "plain close", "aria-label": "Close", onclick: () => dialog.close() }, "✕")),
      node("div", { class: "sides" }, viewer(), details()));
  }

  function marks() {
    const { unit } = view;
    const drawn = unit.marks.filter((mark) => view.kinds.has(mark.kind));
    return view.gold ? [...unit.gold.marks.map((mark) => ({ ...mark, gold: true })), ...drawn] : drawn;
  }

  function viewer() {
    const { unit } = view;
    const side = node("div", { class: "viewer" });
    if (!unit.parts.length && unit.turns.length) {
      side.append(conversation());
      return side;
    }
    if (!unit.parts.length) {
      side.append(node("div", { class: "stage" }, node("p", { class: "thumb" }, node("span", { class: "none" }, "The media could not be read, so the model saw nothing."))));
      return side;
    }
    if (unit.parts.length > 1) {
      const names = unit.parts.map((part, k) => node("option", { value: k }, `${k + 1}. ${part.name}`));
      side.append(node("label", { class: "bar" }, "Media ", node("select", { onchange: (event) => { view.part = Number(event.target.value); view.place = 0; side.replaceWith(viewer()); view.refresh(); } }, names)));
      side.querySelector("select").value = view.part;
    }
    const part = unit.parts[view.part];
    const stage = node("div", { class: "stage" });
    const now = node("span", { class: "now" });
    const remark = node("span", {});
    const film = node("div", { class: "film", role: "group", "aria-label": "Frames the model saw" });
    side.append(stage, node("div", { class: "bar" }, player(part), now, remark, node("span", { class: "grow" }), switches(), original()));
    if (part.problem) {
      stage.append(node("p", { class: "thumb" }, node("span", { class: "none" }, `The media cannot be read now, so its frames are not shown: ${part.problem}`)));
    } else if (part.type === "video") {
      side.append(film);
      film.append(...part.frames.map((frame, place) => node("button", { type: "button", onclick: () => go(place) },
        reelscribe.frame(part, place, { marks: part.times.length ? reelscribe.marksAt(part, place, unit.marks) : [], label: `Frame at ${part.times[place]?.toFixed(3)} s` }), clock(part.times[place], 2))));
    }
    const line = part.type === "video" && part.end !== null ? timeline(part) : null;
    if (line) side.append(line.element);
    const many = part.num_frames > part.frames.length ? `${part.frames.length} of the ` : "";
    remark.textContent = part.problem ? "" : part.type === "image" ? `the image at ${part.resized.join(" × ")} px` : `${many}${count(part.num_frames)} frames the model saw, at ${part.resized.join(" × ")} px`;

    view.refresh = () => {
      const time = part.times[view.place];
      now.textContent = time === undefined ? "" : `${time.toFixed(3)} s`;
      if (!part.problem) {
        const seen = reelscribe.marksAt(part, view.place, marks());
        stage.replaceChildren(reelscribe.frame(part, view.place, { marks: seen, tags: true, label: `${part.type === "video" ? `Frame at ${time?.toFixed(3)} s` : "The image"}, ${seen.length} marks` }));
      }
      [...film.children].forEach((button, place) => button.setAttribute("aria-current", place === view.place));
      film.children[view.place]?.scrollIntoView({ block: "nearest", inline: "nearest" });
      const link = side.querySelector("a.original");
      if (link && time !== undefined) link.href = `${unit.href}#t=${time.toFixed(3)}`;
      line?.move(time);
    };
    return side;
  }

  function conversation() {
    return node("section", { class: "turns", "aria-label": "Conversation" }, view.unit.turns.map(([role, text]) => node("div", { class: `turn ${role}` }, node("h4", {}, role), node("p", {}, text))));
  }

  function player(part) {
    if (part.problem || part.frames.length < 2 || part.type !== "video") return null;
    return node("button", { type: "button", class: "play", onclick: play }, "▶ Play");
  }

  function switches() {
    const { unit } = view;
    const names = { object: "objects", text: "text", point: "points", track: "tracks", block: "blocks" };
    const kinds = [...new Set(unit.marks.map((mark) => mark.kind))];
    const box = (name, isOn, change) => node("label", {}, node("input", { type: "checkbox", checked: isOn, onchange: (event) => { change(event.target.checked); view.refresh(); } }), name);
    return [kinds.map((kind) => box(names[kind] ?? kind, view.kinds.has(kind), (on) => (on ? view.kinds.add(kind) : view.kinds.delete(kind)))),
      unit.gold.marks.length ? box("gold", view.gold, (on) => { view.gold = on; }) : null];
  }

  function original() {
    const { unit } = view;
    if (!unit.href || unit.parts.length > 1) return null;
    return node("a", { class: "original", href: unit.href, target: "_blank", rel: "noopener noreferrer" }, "Original ↗");
  }

  function timeline(part) {
    const { unit } = view;
    const seconds = Math.max(part.end - part.start, 1e-6);
    const lanes = [];
    const all = [...unit.events.map((event) => ({ ...event, gold: false })), ...unit.gold.events.map((event) => ({ ...event, gold: true }))];
    const buttons = all.map((event) => {
      let lane = lanes.find((each) => each.gold === event.gold && each.end <= event.start + 1e-9);
      if (!lane) lanes.push((lane = { gold: event.gold, number: lanes.length }));
      lane.end = event.end;
      const text = `${event.gold ? "gold: " : ""}${event.caption}`;
      return node("button", { type: "button", class: event.gold ? "event gold" : "event", title: `${clock(event.start)} to ${clock(event.end)}: ${text}`, "aria-label": `${clock(event.start)} to ${clock(event.end)}: ${text}`, style: { ...reelscribe.place100(event, part.start, seconds), top: `${6 + 31 * lane.number}px` }, onclick: () => seek(event.start) }, text);
    });
    const head = node("div", { class: "head" });
    const ticks = part.times.map((time) => node("i", { class: "tick", style: { left: `${(100 * (time - part.start)) / seconds}%` } }));
    const area = node("div", { class: "timeline", role: "group", "aria-label": "Timeline of events", style: { height: `${Math.max(1, lanes.length) * 31 + 16}px` } }, buttons, ticks, head);
    const axis = [0, 0.25, 0.5, 0.75, 1].map((share) => node("span", {}, clock(part.start + share * seconds, 2)));
    return {
      element: node("div", {}, area, node("div", { class: "axis", "aria-hidden": "true" }, axis)),
      move: (time) => {
        if (time === undefined) return;
        head.style.left = `${Math.max(0, Math.min(100, (100 * (time - part.start)) / seconds))}%`;
        all.forEach((event, k) => buttons[k].setAttribute("aria-current", event.start <= time && time < event.end));
      },
    };
  }

  function details() {
    const { unit } = view;
    const part = (title, ...children) => node("section", {}, node("h3", {}, title), children);
    const gold = Object.fromEntries(unit.gold.texts);
    const right = (task) => (task in gold ? node("p", { class: "right" }, `gold: ${gold[task]}`) : null);
    const events = unit.events.map((event) => node("li", {}, node("button", { type: "button", onclick: () => seek(event.start) }, node("time", {}, `${clock(event.start)} to ${clock(event.end)}`), event.caption)));
    const found = unit.marks.slice(0, 300).map((mark) => node("li", {}, node("button", { type: "button", onclick: () => mark.pts !== null && seek(mark.pts) },
      node("i", { class: "swatch", style: { background: reelscribe.colorOf(mark.label) } }), mark.pts !== null && node("time", {}, clock(mark.pts)), `${mark.label}${mark.kind === "object" ? "" : ` · ${mark.kind}`}`)));
    const scores = Object.entries(data.units[view.number].scores);
    return node("div", { class: "details", tabindex: 0, role: "region", "aria-label": "Answers and facts" },
      unit.error && node("div", { class: "problem", role: "alert" }, node("p", {}, node("b", {}, unit.error.type), ` at ${unit.error.stage}`), node("p", {}, unit.error.message), node("p", {}, unit.error.advice)),
      unit.parts.length > 0 && unit.turns.length > 0 && part("Conversation", conversation()),
      unit.headlines.map(([task, text]) => part(title(task), node("p", { class: "caption" }, text), right(task))),
      !unit.headlines.some(([task]) => task === "caption") && "caption" in gold && part("Caption", right("caption")),
      unit.notes.length > 0 && part("Notes on the file", node("ul", { class: "notes" }, unit.notes.map((note) => node("li", {}, note)))),
      events.length > 0 && part("Events", node("ul", { class: "list" }, events)),
      unit.texts.map(([task, text]) => part(title(task), node("pre", { tabindex: 0 }, text), right(task))),
      found.length > 0 && part("Marks", node("ul", { class: "list" }, found), unit.marks.length > found.length && node("p", {}, `and ${count(unit.marks.length - found.length)} more`)),
      scores.length > 0 && part("Agreement with gold", node("dl", { class: "facts" }, scores.map(([task, score]) => [node("dt", {}, task), node("dd", {}, node("meter", { min: 0, max: 1, low: 0.5, high: 0.8, optimum: 1, value: score, "aria-label": `${task} ${score}` }), ` ${score.toFixed(3)}`)]))),
      unit.answers.length > 0 && part("Prompts and raw answers", unit.answers.map(answer)),
      part("Facts", node("dl", { class: "facts" }, unit.uri && [node("dt", {}, "uri"), node("dd", {}, unit.uri)], unit.facts.map(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]))));
  }

  function answer(of) {
    const block = (title, text) => text && node("div", {}, node("h4", {}, title), node("pre", { tabindex: 0 }, text));
    const notes = [of.finish_reason && `finish reason: ${of.finish_reason}`, of.attempts > 1 && `${of.attempts} attempts`, of.note].filter(Boolean).join(" · ");
    return node("details", { class: "answer" },
      node("summary", {}, node("span", {}, of.task), node("span", { class: `pill ${of.status}` }, of.status), node("span", { class: "grow" }),
        of.num_prompt_tokens !== null && of.num_prompt_tokens !== undefined && node("small", {}, `${count(of.num_prompt_tokens)} → ${count(of.num_output_tokens)} tokens`)),
      node("div", { class: "in" }, notes && node("p", {}, notes), block("Prompt", of.prompt), block("Reasoning", of.reasoning), block("Raw answer", of.raw_text)));
  }

  function go(place) {
    view.place = place;
    view.refresh();
  }
  function seek(seconds) {
    const { times } = view.unit.parts[view.part] || { times: [] };
    if (!times.length) return;
    // The first frame at or after this time; else the last one.
    const at = times.findIndex((time) => time >= seconds - 0.0005);
    stop();
    go(at < 0 ? times.length - 1 : at);
  }
  function move(step) {
    const number = view.unit.parts[view.part]?.frames.length ?? 0;
    if (number) go((view.place + step + number) % number);
  }
  function turn(step) {
    const next = reelscribe.neighbour(view.number, step);
    if (next !== undefined) open(next);
  }
  function play() {
    if (view.playing) return stop();
    view.playing = setInterval(() => move(1), quiet ? 1200 : 500);
    const button = dialog.querySelector(".play");
    if (button) button.textContent = "❚❚ Pause";
    return undefined;
  }
  function stop() {
    if (!view?.playing) return;
    clearInterval(view.playing);
    view.playing = null;
    const button = dialog.querySelector(".play");
    if (button) button.textContent = "▶ Play";
  }

  dialog.addEventListener("close", () => { stop(); history.replaceState(null, "", "#"); document.querySelector(`[data-unit="${view.number}"]`)?.focus(); });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (/^(SELECT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowRight: () => { stop(); move(1); }, ArrowLeft: () => { stop(); move(-1); }, j: () => turn(1), k: () => turn(-1), " ": play };
    const step = steps[event.key];
    if (!step || (event.key === " " && /^(BUTTON|INPUT|SUMMARY|A)$/.test(event.target.tagName) && !event.target.classList.contains("close"))) return;
    event.preventDefault();
    step();
  });
  Object.assign(reelscribe, { open });
})();
