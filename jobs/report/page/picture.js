"use strict";
// Frames of a sheet, and their marks.
(() => {
  const { svg } = reelscribe;
  const COLORS = ["#ffd43b", "#4dd4ff", "#ff7ac6", "#7df07d", "#ff9f43", "#b197fc", "#63e6be", "#ff8787", "#a9e34b", "#74c0fc"];
  const NEAR = 0.0005; // maximum distance of a mark from its frame, in seconds

  function colorOf(label) {
    let hash = 7;
    for (const char of label.toLowerCase()) hash = (hash * 31 + char.codePointAt(0)) >>> 0;
    return COLORS[hash % COLORS.length];
  }

  // The marks of the frame at `place` of the part's sheet.
  function marksAt(part, place, marks) {
    const time = part.times[place];
    return marks.filter((mark) => mark.pts === null || time === undefined || Math.abs(mark.pts - time) < NEAR);
  }

  // place: position in the sheet. marks: {kind, label, box | point, gold}, in pixels of the original.
  function frame(part, place, { marks = [], tags = false, label = "" } = {}) {
    const [width, height] = part.cell;
    const column = place % part.columns;
    const row = Math.floor(place / part.columns);
    const rows = Math.ceil(part.frames.length / part.columns);
    const scale = [width / part.width, height / part.height];
    // The inner svg clips the sheet to this frame.
    return svg("svg", { class: "frame", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
      svg("svg", { width, height, viewBox: `${column * width} ${row * height} ${width} ${height}` },
        svg("image", { href: part.sheet, width: part.columns * width, height: rows * height })),
      marks.map((mark) => drawn(mark, scale, [width, height], tags)));
  }

  function drawn(mark, [sx, sy], [width, height], tags) {
    const stroke = mark.gold ? "#ffffff" : colorOf(mark.label);
    const className = mark.gold ? "mark gold" : "mark";
    const size = Math.max(width, height) / 36;
    const group = svg("g", { "data-kind": mark.kind, "data-gold": mark.gold }, svg("title", {}, mark.gold ? `gold: ${mark.label}` : mark.label));
    let corner;
    if (mark.point) {
      const [x, y] = [mark.point[0] * sx, mark.point[1] * sy];
      const radius = size / 2.2;
      group.append(svg("circle", { class: "halo", cx: x, cy: y, r: radius }), svg("circle", { class: className, cx: x, cy: y, r: radius, stroke }),
        svg("circle", { cx: x, cy: y, r: radius / 4, fill: stroke }));
      corner = [x + radius, y];
    } else {
      const [x1, y1, x2, y2] = [mark.box[0] * sx, mark.box[1] * sy, mark.box[2] * sx, mark.box[3] * sy];
      const box = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1), rx: 1 };
      group.append(svg("rect", { class: "halo", ...box }), svg("rect", { class: className, ...box, stroke }));
      corner = [x1, y1];
    }
    if (tags && !mark.gold) {
      const text = mark.label.length > 32 ? `${mark.label.slice(0, 31)}…` : mark.label;
      const wide = Math.min(width, text.length * size * 0.58 + size * 0.7);
      const x = Math.max(0, Math.min(corner[0], width - wide));
      const y = corner[1] - size * 1.4 < 0 ? corner[1] : corner[1] - size * 1.4;
      group.append(svg("rect", { x, y, width: wide, height: size * 1.4, rx: size / 5, fill: stroke }),
        svg("text", { x: x + size * 0.35, y: y + size * 1.05, fill: "#10131c", "font-size": size, "font-weight": 600, textLength: text.length > 3 ? wide - size * 0.7 : null, lengthAdjust: "spacingAndGlyphs" }, text));
    }
    return group;
  }

  // The frame with the most marks; without marks the middle one.
  function bestPlace(part, marks) {
    let best = Math.floor((part.frames.length - 1) / 2);
    let max = 0;
    part.frames.forEach((_, place) => {
      const number = part.times.length ? marksAt(part, place, marks).length : 0;
      if (number > max) [best, max] = [place, number];
    });
    return best;
  }

  Object.assign(reelscribe, { frame, marksAt, bestPlace, colorOf });
})();
