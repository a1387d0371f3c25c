"use strict";
// The summary, the charts of the shown units, and the tabs.
(() => {
  const { data, node, count, span, color } = reelscribe;
  const by = (id) => document.getElementById(id);
  const STATES = ["ok", "repaired", "truncated", "looped", "unparsed", "failed"];
  const TABS = ["units", "videos", "charts", "runs"];
  let charts = [];

  const total = (units, name) => units.reduce((sum, unit) => sum + (unit[name] ?? 0), 0);
  function tally(values) {
    const counts = new Map();
    values.forEach((value) => counts.set(value, (counts.get(value) || 0) + 1));
    return [...counts].sort((a, b) => b[1] - a[1]);
  }

  function summary() {
    const { units } = data;
    const states = ["ok", "partial", "failed"].map((name) => [name, units.filter((unit) => unit.status === name).length]);
    const timed = data.runs.filter((run) => run.num_units && run.seconds); // units of the last start, over its seconds
    const wall = total(timed, "seconds");
    const seconds = total(units, "seconds");
    const labels = tally(units.flatMap((unit) => unit.labels)).length;
    const figure = (value, text, ...more) => node("div", { class: "figure" }, node("b", {}, value), node("span", {}, text), more);
    const scored = units.filter((unit) => unit.score !== null);
    by("figures").replaceChildren(
      figure(count(units.length), states.filter(([, number]) => number).map(([name, number]) => `${count(number)} ${name}`).join(", "),
        node("div", { class: "split", "aria-hidden": "true" }, states.filter(([, number]) => number).map(([name, number]) => node("i", { class: name, style: { flex: number } })))),
      ...(seconds ? [figure(span(seconds), "of video")] : []),
      figure(count(total(units, "tokens_out")), `tokens out, ${count(total(units, "tokens_in"))} in`),
      ...(wall ? [figure(`${count(Math.round((60 * total(timed, "num_units")) / wall))} / min`, `units in the last start${timed.length > 1 ? " of each run" : ""}: ${count(total(timed, "num_units"))} in ${span(wall)}, ${count(Math.round(total(timed, "num_output_tokens") / wall))} tokens/s out`)] : []),
      ...(labels ? [figure(count(labels), "labels in the pictures")] : []),
      ...(scored.length ? [figure((total(scored, "score") / scored.length).toFixed(3), `mean agreement with gold, ${count(scored.length)} units`)] : []));
    remarks(units);
    by("subtitle").textContent = `${data.runs.map((run) => run.run_id).slice(0, 3).join(", ")}${data.runs.length > 3 ? ` and ${data.runs.length - 3} more` : ""} · recipe ${data.recipe}`;
  }

  // Errors by type, units with notes, and what the scan left out.
  function remarks(units) {
    const chip = (id, value, number, kind) => node("button", { type: "button", class: `pill ${kind}`, onclick: () => reelscribe.filter(id, value) }, `${value} ${count(number)}`);
    const errors = tally(units.filter((unit) => unit.error).map((unit) => unit.error));
    const notes = units.filter((unit) => unit.num_notes).length;
    const newest = data.runs.reduce((last, run) => ((run.created_at ?? "") >= (last?.created_at ?? "") ? run : last), null);
    const row = (name, ...content) => node("p", {}, node("b", {}, name), content);
    by("remarks").replaceChildren(...[
      errors.length && row("Errors", errors.map(([kind, number]) => chip("by-error", kind, number, "failed"))),
      notes && row("Unusual files", chip("by-notes", "with notes", notes, "partial")),
      newest?.left_out?.length && row("Left out by the scan", newest.left_out.map((text) => node("span", { class: "pill" }, text))),
    ].filter(Boolean));
  }

  // Bins of equal width on 1, 2, 5 × 10^k edges.
  function histogram(values, name) {
    const max = Math.max(...values, 1e-9);
    const raw = max / 12;
    const power = 10 ** Math.floor(Math.log10(raw));
    const width = [1, 2, 5, 10].map((step) => step * power).find((step) => step >= raw);
    const bins = Array(Math.floor(max / width) + 1).fill(0);
    values.forEach((value) => { bins[Math.floor(value / width)] += 1; });
    const digits = Math.max(0, -Math.floor(Math.log10(width)));
    const rows = bins.map((number, k) => [`${(k * width).toFixed(digits)}`, number]);
    return { rows, columns: [name, "units"] };
  }

  function figures(units) {
    const found = [];
    const tasks = [...new Set(units.flatMap((unit) => unit.tasks.map(([task]) => task)))];
    if (tasks.length) {
      const states = STATES.filter((state) => units.some((unit) => unit.tasks.some(([, status]) => status === state)));
      found.push({ title: "Answers by task", note: "Status of the answers of each task. Click to filter.", type: "bar", horizontal: true, stacked: states,
        rows: tasks.map((task) => [task, ...states.map((state) => units.filter((unit) => unit.tasks.some(([t, s]) => t === task && s === state)).length)]),
        columns: ["task", ...states], click: (row) => reelscribe.filter("by-task", row[0]) });
    }
    const errors = tally(units.filter((unit) => unit.error).map((unit) => unit.error));
    if (errors.length) found.push({ title: "Errors", note: "Units that failed, by type. Click to filter.", type: "bar", horizontal: true, tint: "failed", rows: errors, columns: ["error", "units"], click: (row) => reelscribe.filter("by-error", row[0]) });
    const labels = tally(units.flatMap((unit) => unit.labels)).slice(0, 15);
    if (labels.length) found.push({ title: "Labels", note: "Units with this label. Click to filter.", type: "bar", horizontal: true, rows: labels, columns: ["label", "units"], click: (row) => reelscribe.filter("by-label", row[0]) });
    const scored = units.filter((unit) => unit.score !== null);
    if (scored.length) {
      const of = [...new Set(scored.flatMap((unit) => Object.keys(unit.scores)))];
      found.push({ title: "Agreement with gold", note: `Mean of units, 0 to 1: ${of.map((task) => `${task} by ${data.evaluation.primary[task].replaceAll("_", " ")}`).join(", ")}.`, type: "bar", horizontal: true, tint: "ok",
        rows: of.map((task) => { const some = scored.filter((unit) => task in unit.scores); return [task, some.reduce((sum, unit) => sum + unit.scores[task], 0) / some.length]; }), columns: ["task", "score"], digits: 3 });
      found.push({ title: "Units by agreement", note: "The worst are on the left.", type: "bar", ...histogram(scored.map((unit) => Math.min(unit.score, 0.9999)), "score") });
    }
    const answered = units.filter((unit) => unit.tokens_out);
    if (answered.length) {
      found.push({ title: "Tokens out", note: "Generated tokens of a unit, over all tasks.", type: "bar", ...histogram(answered.map((unit) => unit.tokens_out), "tokens") });
      const timed = answered.filter((unit) => unit.engine_seconds);
      if (timed.length) found.push({ title: "Throughput", note: `${count(Math.round(total(timed, "tokens_out") / total(timed, "engine_seconds")))} tokens out per engine second; a point is a unit.`, type: "scatter",
        rows: timed.map((unit) => [unit.tokens_out, Number(unit.engine_seconds.toFixed(4))]), columns: ["tokens out", "engine seconds"] });
    }
    const waits = [["decode", total(units, "decode_seconds")], ["engine", total(units, "engine_seconds")]];
    if (waits.some(([, value]) => value)) found.push({ title: "Time by stage", note: "Sums over units; decoders and engines work at the same time.", type: "bar", horizontal: true, rows: waits, columns: ["stage", "seconds"], digits: 2 });
    const lengths = units.filter((unit) => unit.seconds).map((unit) => unit.seconds);
    if (lengths.length) found.push({ title: "Durations", note: "Lengths of the units' time spans, in seconds.", type: "bar", ...histogram(lengths, "seconds") });
    return found;
  }

  function drawCharts() {
    if (by("charts").hidden) return;
    charts.forEach((chart) => chart.destroy());
    charts = [];
    const area = node("div", { class: "charts" });
    by("charts").replaceChildren(area);
    figures(reelscribe.shown()).forEach((of) => {
      const canvas = node("canvas", { role: "img", "aria-label": `${of.title}. ${of.note} The figures are in the table below.` });
      area.append(node("figure", { class: "chart" }, node("figcaption", {}, of.title), node("p", {}, of.note), node("div", { class: "canvas" }, canvas), table(of)));
      charts.push(new Chart(canvas, configuration(of)));
    });
    if (!area.children.length) area.append(node("p", { class: "empty" }, "No unit matches the filters."));
  }

  function table(of) {
    const shown = of.rows.slice(0, 200);
    const text = (value) => (typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: of.digits ?? 3 }) : value);
    return node("details", {}, node("summary", {}, "Figures"), node("table", {},
      node("thead", {}, node("tr", {}, of.columns.map((name) => node("th", { scope: "col" }, name)))),
      node("tbody", {}, shown.map((row) => node("tr", {}, row.map((value) => node("td", {}, text(value))))))),
      of.rows.length > shown.length && node("p", {}, `and ${count(of.rows.length - shown.length)} more`));
  }

  // An axis that a few large values do not squeeze: from the least to the largest, and
  // logarithmic if the largest is far above the median.
  function spread(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const [min, middle, max] = [sorted[0], sorted[Math.floor(sorted.length / 2)], sorted[sorted.length - 1]];
    if (min > 0 && max > 8 * middle) return { type: "logarithmic", min: min / 1.15, max: max * 1.15 };
    const margin = max > min ? 0.04 * (max - min) : max / 2 || 1;
    return { type: "linear", suggestedMin: Math.max(0, min - margin), suggestedMax: max + margin };
  }

  function configuration(of) {
    const tints = { ok: color("ok"), repaired: color("accent"), truncated: color("partial"), looped: color("partial"), unparsed: color("muted"), failed: color("failed") };
    const plain = of.tint ? color(of.tint) : color("accent");
    let scales = null;
    const names = of.stacked ?? [of.columns[1]];
    const scatter = of.type === "scatter";
    const axis = (title, isValue, ends = {}) => ({ ...ends, stacked: Boolean(of.stacked), title: { display: Boolean(title), text: title, color: color("muted") }, grid: { display: isValue, color: color("line") }, border: { color: color("line") }, ticks: { color: color("muted"), autoSkip: isValue || !of.horizontal, precision: of.digits || scatter ? undefined : 0 }, beginAtZero: !scatter });
    if (scatter) {
      const [x, y] = [0, 1].map((k) => spread(of.rows.map((row) => row[k])));
      const name = (k, ends) => `${of.columns[k]}${ends.type === "logarithmic" ? ", logarithmic" : ""}`;
      scales = { x: axis(name(0, x), true, x), y: axis(name(1, y), true, y) };
    }
    return {
      type: of.type,
      data: scatter
        ? { datasets: [{ data: of.rows.map(([x, y]) => ({ x, y })), backgroundColor: `${plain}99`, pointRadius: of.rows.length > 300 ? 2.5 : 4 }] }
        : { labels: of.rows.map((row) => String(row[0]).slice(0, 40)), datasets: names.map((name, k) => ({ label: name, data: of.rows.map((row) => row[k + 1]), backgroundColor: of.stacked ? tints[name] : plain, borderRadius: 4, maxBarThickness: 26 })) },
      options: {
        indexAxis: of.horizontal ? "y" : "x",
        maintainAspectRatio: false,
        animation: false,
        onClick: (_, found) => found.length && of.click?.(of.rows[found[0].index]),
        plugins: { legend: { display: Boolean(of.stacked), position: "bottom", labels: { color: color("muted"), boxWidth: 12, boxHeight: 12 } } },
        scales: scales ?? { x: axis(of.horizontal ? "" : of.columns[0], of.horizontal), y: axis("", !of.horizontal) },
      },
    };
  }

  function showTab(name) {
    TABS.forEach((each) => {
      by(each).hidden = each !== name;
      by(`tab-${each}`).setAttribute("aria-selected", each === name);
      by(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    });
    by("filters").hidden = name === "runs"; // a run is not filtered
    reelscribe.drawVideos();
    drawCharts();
  }

  addEventListener("DOMContentLoaded", () => {
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    summary();
    const tabs = TABS.filter((name) => !by(`tab-${name}`).hidden);
    tabs.forEach((name, k) => {
      by(`tab-${name}`).addEventListener("click", () => showTab(name));
      by(`tab-${name}`).addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = tabs[(k + step + tabs.length) % tabs.length];
        showTab(next);
        by(`tab-${next}`).focus();
      });
    });
  });
  reelscribe.onTheme(drawCharts);
  Object.assign(reelscribe, { drawCharts, showTab });
})();
