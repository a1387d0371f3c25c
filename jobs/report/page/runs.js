"use strict";
// The facts about the runs: times, machines, counts, settings.
(() => {
  const { data, node, count, span } = reelscribe;
  const date = (text) => (text ? text.replace("T", " ").replace(/(\+00:00|Z)$/, " UTC") : "");

  function table(title, rows, columns = []) {
    if (!rows.length) return null;
    return node("section", { class: "facts-table" }, node("h3", {}, title), node("table", {},
      columns.length > 0 && node("thead", {}, node("tr", {}, columns.map((name) => node("th", { scope: "col" }, name)))),
      node("tbody", {}, rows.map(([name, ...values]) => node("tr", {}, node("th", { scope: "row" }, name), values.map((value) => node("td", {}, typeof value === "number" ? count(value) : value)))))));
  }

  const counted = (counts) => Object.entries(counts ?? {}).sort((a, b) => b[1] - a[1]);

  function times(run) {
    const rate = run.num_units && run.seconds ? ` (${count(Math.round((60 * run.num_units) / run.seconds))} a minute)` : "";
    return [["created", date(run.created_at)], ["finished", date(run.finished_at)], ["starts", run.starts],
      ["last start", run.seconds && span(run.seconds)],
      ["done by the last start", run.num_units && `${count(run.num_units)} units${rate}`],
      ["rows of earlier runs", run.counts?.units_of_earlier_runs],
      ["decoding, all rows", run.counts?.decode_seconds && span(run.counts.decode_seconds)],
      ["engines, all rows", run.counts?.engine_seconds && span(run.counts.engine_seconds)]].filter(([, value]) => value);
  }

  const many = (number, name) => `${count(number)} ${name}${number === 1 ? "" : "s"}`;

  function machines(run) {
    const rows = (run.machines ?? []).map((kind) => [`${count(kind.num)} ×`, [many(kind.cpus, "CPU"), kind.gpus && `${many(kind.gpus, "GPU")}${kind.gpu ? ` (${kind.gpu})` : ""}`, `${count(kind.memory_gib)} GiB of memory`].filter(Boolean).join(", ")]);
    return [...rows, ...Object.entries(run.actors ?? {})];
  }

  function panel(run) {
    const { counts = {} } = run;
    const raw = run.raw && node("details", {}, node("summary", {}, "run.json, as it is"), node("pre", { tabindex: 0 }, JSON.stringify(run.raw, null, 1)));
    const settings = (run.settings ?? []).map(([section, rows]) => table(section, rows.length ? rows : [["", "no settings of its own"]]));
    return node("article", { class: "panel run" },
      node("header", {}, node("h2", {}, run.run_id), run.status && node("span", { class: `pill ${run.status === "complete" ? "ok" : "partial"}` }, run.status)),
      !run.raw && node("p", { class: "muted" }, "The run's run.json is not here: give the output folder to see its settings, machines and times."),
      node("div", { class: "tables" },
        table("Times", times(run)), table("Machines", machines(run)),
        table("Units by status", counted(counts.status)), table("Errors", counted(counts.errors)), table("Answers by status", counted(counts.answers)),
        table("Decoded by", counted(counts.decoders)),
        table("Tokens", [["prompts", counts.prompt_tokens], ["answers", counts.output_tokens]].filter(([, value]) => value)),
        table("Left out by the scan", (run.left_out ?? []).map((text) => [text]))),
      settings.length > 0 && node("details", { open: data.runs.length <= 3 }, node("summary", {}, "Settings"), node("div", { class: "tables" }, settings)),
      run.versions && node("details", {}, node("summary", {}, "Versions"), node("div", { class: "tables" }, table("Versions", Object.entries(run.versions)))),
      raw);
  }

  function evaluation() {
    const found = data.evaluation;
    if (!found) return null;
    return node("article", { class: "panel" }, node("header", {}, node("h2", {}, `Against ${found.gold}`)), node("div", { class: "tables" },
      Object.entries(found.tasks).map(([task, all]) => table(task, all.map(([name, value]) => [name.replaceAll("_", " "), value === null ? "-" : value.toFixed(3)])))));
  }

  document.getElementById("runs").replaceChildren(node("div", { class: "panels" }, evaluation(), data.runs.map(panel)));
})();
