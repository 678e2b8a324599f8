// The heat map of layers by frames, and bars for the chosen layer. Lengths are in CSS pixels.
const INK = "#1a1a1a", SOFT = "#595959", PALE = "#c8c8c8";
const BAR = 52, TOP = 22, GAP = 14, FOOT = 44; // height of the bars each way, margins

// Where everything stands on a canvas `width` pixels wide.
function layout(s, width, sharp) {
  const [layers, , frames] = s.shape;
  const step = Math.ceil(frames / s.columns);
  const row = Math.min(24, Math.max(7, 160 / layers));
  const left = width < 600 ? 46 : 84, right = width < 600 ? 50 : 74;
  const inner = width - left - right;
  const bars = TOP + row * layers + GAP + BAR; // where keys and attention meet
  return { layers, frames, step, row, left, right, inner, bars, width, height: bars + BAR + FOOT,
    whole: (length) => Math.round(length * sharp) / sharp, // of the screen's own pixels: no seams between cells
    edge: (frame) => left + (Math.min(frame, frames) / frames) * inner };
}

// The layer (null below the heat map) and the frame at a place; null where there is none.
function at(s, place, x, y, view) {
  const frame = Math.floor(((x - place.left) / place.inner) * place.frames);
  if (frame < 0 || frame >= place.frames || y < TOP || y > place.bars + BAR) return null;
  const row = Math.floor((y - TOP) / place.row);
  const layer = row < place.layers ? row : null;
  const begin = Math.floor(frame / place.step) * place.step; // of a column of several frames, the one with most
  const column = s.shown(layer ?? view.layer, view.query).subarray(begin, begin + place.step);
  return { layer, frame: begin + largest(column) };
}

// Each column shows its strongest frame: no peak is lost.
function columns(values, step) {
  const out = [];
  for (let n = 0; n < values.length; n += step) out.push(Math.max(...values.subarray(n, n + step)));
  return out;
}

function draw(canvas, s, view) {
  const sharp = window.devicePixelRatio || 1;
  const place = layout(s, canvas.clientWidth, sharp);
  canvas.style.height = `${place.height}px`;
  canvas.width = Math.round(place.width * sharp);
  canvas.height = Math.round(place.height * sharp);
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  drawHeat(pen, s, view, place);
  drawTruth(pen, s, place);
  drawBars(pen, s, view, place);
  drawRest(pen, s, view, place);
  drawTicks(pen, s, place);
  return place;
}

function text(pen, words, x, y, { align = "left", colour = INK, bold = false } = {}) {
  pen.font = `${bold ? "bold " : ""}12px system-ui, sans-serif`;
  pen.textAlign = align;
  pen.textBaseline = "middle";
  pen.fillStyle = colour;
  pen.fillText(words, x, y);
}

function drawHeat(pen, s, view, place) {
  const { layers, row, left, inner, step, width } = place;
  const every = [1, 2, 4, 8, 16, 32].find((n) => row * n >= 15);
  const most = s.most(view.query);
  for (let layer = 0; layer < layers; layer++) {
    const y = TOP + layer * row;
    columns(s.shown(layer, view.query), step).forEach((share, n) => {
      const [x, end, top, foot] = [place.edge(n * step), place.edge((n + 1) * step), y, y + row].map(place.whole);
      pen.fillStyle = colourOf(s, shadeOf(s, share, most));
      pen.fillRect(x, top, end - x, foot - top);
    });
  }
  for (let layer = 0; layer < layers; layer++) {
    const chosen = layer === view.layer;
    if (!chosen && (layer % every || Math.abs(layer - view.layer) * row < 15)) continue;
    const middle = TOP + (layer + 0.5) * row;
    text(pen, `${chosen ? "▸ " : ""}${s.layers[layer]}`, left - 8, middle, { align: "right", bold: chosen });
    const kept = percent(s.kept[layer][view.query]);
    text(pen, kept, left + inner + 8, middle, { bold: chosen, colour: chosen ? INK : SOFT });
  }
  text(pen, "layer", left - 8, 9, { align: "right", colour: SOFT });
  text(pen, "kept", left + inner + 8, 9, { colour: SOFT });
  text(pen, `lighter: more ${s.readsAll[view.query] ? "attention" : "keys"}`, left, 9, { colour: SOFT });
  text(pen, `lightest: ${percent(most)}`, left + inner, 9, { align: "right", colour: SOFT });
}

function drawTruth(pen, s, place) {
  pen.fillStyle = s.accent;
  const high = place.row * place.layers;
  for (const frame of s.truth) {
    const begin = Math.floor(frame / place.step) * place.step;
    const [x, end] = [place.edge(begin), place.edge(begin + place.step)].map(place.whole);
    pen.fillRect(x, TOP - 5, Math.max(4, end - x), 4);
    pen.fillRect(x, TOP + high + 2, Math.max(4, end - x), 4);
  }
}

// The chosen layer over time: keys upwards, attention downwards, each to its own scale; truth striped.
function drawBars(pen, s, view, place) {
  const { left, inner, bars, step } = place;
  const real = new Set(s.truth.map((frame) => Math.floor(frame / step)));
  const both = [[s.shares(view.layer, view.query), s.blue, "keys", -1],
    [s.mass(view.layer, view.query), s.orange, "attention", 1]];
  for (const [values, colour, name, sign] of both) {
    const short = place.width < 600 && name === "attention" ? "att." : name;
    text(pen, short, left - 8, bars + (sign * BAR) / 2, { align: "right", colour: SOFT });
    if (sign < 0 && s.readsAll[view.query]) {
      text(pen, "every key is read: nothing is selected", left, bars - 14, { colour: SOFT });
      continue;
    }
    const most = values[largest(values)];
    columns(values, step).forEach((value, n) => {
      if (!value) return;
      const [x, end] = [place.edge(n * step), place.edge((n + 1) * step)].map(place.whole);
      const wide = end - x, gap = wide > 5 ? 0.15 * wide : 0, long = ((BAR - 4) * value) / most;
      const box = [x + gap / 2, sign < 0 ? bars - long : bars + 1, Math.max(0.7, wide - gap), long];
      pen.fillStyle = real.has(n) ? s.accent : colour;
      pen.fillRect(...box);
      pen.fillStyle = "white";
      for (let y = 4; real.has(n) && y < long - 1; y += 4) pen.fillRect(box[0], box[1] + y, box[2], 0.9);
    });
    text(pen, percent(most), left + inner + 8, bars + sign * (BAR - 12), { colour: SOFT });
  }
  pen.fillStyle = INK;
  pen.fillRect(left, bars - 0.5, inner, 1.2);
}

// A frame around the chosen layer, and a veil over the frames that are not chosen.
function drawRest(pen, s, view, place) {
  const { left, inner, row, bars, frames } = place;
  pen.fillStyle = "rgba(255, 255, 255, 0.72)";
  const from = place.edge(view.first), to = place.edge(view.last + 1);
  pen.fillRect(left, TOP, from - left, bars + BAR - TOP);
  pen.fillRect(to, TOP, left + inner - to, bars + BAR - TOP);
  if (view.first > 0 || view.last < frames - 1) {
    pen.strokeStyle = INK;
    pen.setLineDash([4, 3]);
    for (const x of [from, to]) {
      pen.beginPath();
      pen.moveTo(x, TOP);
      pen.lineTo(x, bars + BAR);
      pen.stroke();
    }
    pen.setLineDash([]);
  }
  const y = TOP + view.layer * row;
  pen.lineWidth = 2;
  pen.strokeStyle = INK;
  pen.strokeRect(left - 1, y - 1, inner + 2, row + 2);
  pen.lineWidth = 1;
  pen.strokeStyle = "white";
  pen.strokeRect(left + 0.5, y + 0.5, inner - 1, row - 1);
}

function drawTicks(pen, s, place) {
  const y = place.bars + BAR;
  let free = 0;
  s.ticks.places.forEach((frame, n) => {
    const x = place.edge(frame + 0.5), half = pen.measureText(s.ticks.names[n]).width / 2;
    pen.fillStyle = PALE;
    pen.fillRect(x, y, 1, 4);
    if (x - half < free || x + half > place.width) return; // a name that would lie over the one before
    text(pen, s.ticks.names[n], x, y + 13, { align: "center" });
    free = x + half + 6;
  });
  const more = place.step > 1 ? `; a column is the strongest of ${place.step} frames` : "";
  text(pen, s.ticks.unit + more, place.left + place.inner / 2, y + 31, { align: "center", colour: SOFT });
}
