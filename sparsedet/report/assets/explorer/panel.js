// One column: its heading, its picture, and the pointer over it.

const PANELS = []; // by number of the column: { column, canvas, ... }

function buildColumns() {
  const columns = columnsOf();
  PANELS.length = 0;
  fill(document.getElementById("columns"), ...columns.map(buildColumn));
}

function buildColumn(column, number) {
  const panel = {
    column,
    title: element("h2"),
    facts: element("p"),
    canvas: element("canvas", { role: "img" }),
    absent: element("div"),
    found: element("div"),
    attention: element("div"),
    kept: element("div"),
    cost: element("div"),
  };
  PANELS.push(panel);
  panel.canvas.addEventListener("mousemove", (event) => pointAt(event, number));
  panel.canvas.addEventListener("mouseleave", () => leave());
  panel.canvas.addEventListener("click", (event) => hold(event, number));
  return element(
    "article",
    { class: "column" },
    element("header", {}, panel.title, panel.facts),
    panel.canvas,
    panel.absent,
    panel.found,
    panel.attention,
    panel.kept,
    panel.cost,
  );
}

/** Draw all of a column anew. */
function updatePanel(number) {
  const panel = PANELS[number];
  const { column } = panel;
  const pass = passOf(column);
  const view = viewOf(column);
  panel.title.textContent = titleOf(column, pass);
  panel.facts.textContent = factsOf(column, pass, view);
  fill(panel.absent, ...absentOf(column, pass));
  paintPanel(number);
  fill(panel.found, ...foundList(number));
  fill(panel.attention, ...attentionTable(number));
  fill(panel.kept, ...keptTable(number));
  fill(panel.cost, ...costTable(number));
}

/** Draw the picture alone: what a pointer that moves needs. */
function paintPanel(number) {
  const { column, canvas } = PANELS[number];
  paintColumn(canvas, column, number);
  const pass = passOf(column);
  const overlay = OVERLAYS.find((each) => each.id === overlayOf(column)).name.toLowerCase();
  const count = several(visible(pass).length, "detection");
  canvas.setAttribute("aria-label", `${FACTS.pictures[shown.index].name}, ${count}, overlay: ${overlay}`);
}

function titleOf(column, pass) {
  const name = column.model.name;
  if (column.dense) return `${name}, all tokens`;
  return pass.ratio === null ? name : `${name}, keep ratio ${ratioWords(pass.ratio)}`;
}

function factsOf(column, pass, view) {
  const size = view.input ? `, model input ${view.input[1]} x ${view.input[0]}` : "";
  const own = !column.dense && pass.ratio !== null && pass.ratio === column.model.ownRatio;
  const words = own ? " This is the model's own keep ratio." : "";
  if (pass.keptShare === undefined) return `${column.model.parts}${size}`;
  return `Updates ${keptWords(pass, view)}${size}.${words}`;
}

/** What cannot be shown of the model, where it was asked for. */
function absentOf(column, pass) {
  const { missing } = column.model;
  const sentences = [missing[state.overlay]];
  if (!column.dense && RATIOS.length && pass.ratio === null) sentences.push(missing.ratio);
  if (!column.dense && pass.ratio !== null && pass.ratio !== RATIOS[state.ratio]) {
    sentences.push(`This model cannot keep ${RATIOS[state.ratio]} of the tokens; the nearest ratio is shown.`);
  }
  if (state.dense && !column.dense) sentences.push(missing.dense);
  if (state.level && viewOf(column).levels.length && !levelIn(viewOf(column))) {
    sentences.push(`This model has no level of stride ${strides()[state.level - 1]}; all of its levels are shown.`);
  }
  const [height, width] = shown.size;
  if (shapeOf(shown.size) !== width / height) {
    sentences.push(`The picture has ${width} x ${height} pixels. It is stretched here, so that it can be seen.`);
  }
  const different = [...new Set(sentences.filter(Boolean))];
  return different.map((text) => element("p", { class: "absent" }, text));
}

/** Where the pointer is, as shares of the picture. */
function placeOf(event) {
  const area = event.target.getBoundingClientRect();
  return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
}

/** The smallest detection under a place. */
function detectionAt(pass, [x, y]) {
  let best = null;
  for (const index of visible(pass)) {
    const [left, top, right, bottom] = pass.detections.boxes[index];
    const area = (right - left) * (bottom - top);
    const inside = x >= left && x <= right && y >= top && y <= bottom;
    if (inside && (!best || area < best.area)) best = { index, area };
  }
  return best && best.index;
}

function pointAt(event, number) {
  if (!shown) return;
  const place = placeOf(event);
  const { column } = PANELS[number];
  const index = detectionAt(passOf(column), place);
  document.getElementById("readout").textContent = tokensAt(column, place);
  setHovered(index === null ? null : { column: number, index });
}

function leave() {
  document.getElementById("readout").textContent = "";
  setHovered(null);
}

function hold(event, number) {
  const index = detectionAt(passOf(PANELS[number].column), placeOf(event));
  state.held = index === null ? null : { column: number, index };
  updateActive();
}

function setHovered(next) {
  const before = state.hovered;
  const same = before === next || (before && next && before.column === next.column && before.index === next.index);
  state.hovered = next;
  if (!same) updateActive();
}

/** The tokens under a place, in words. */
function tokensAt(column, [x, y]) {
  const view = viewOf(column);
  const pass = passOf(column);
  if (!view.levels.length) return column.model.missing.kept;
  const starts = levelStarts(view);
  const words = view.levels.map((level, index) => {
    if (levelIn(view) > 0 && index !== levelIn(view) - 1) return null;
    const down = Math.min(Math.floor((y * view.input[0]) / level.stride), level.rows - 1);
    const across = Math.min(Math.floor((x * view.input[1]) / level.stride), level.columns - 1);
    return `stride ${level.stride}: ${tokenWords(view, pass, starts[index] + down * level.columns + across)}`;
  });
  return words.filter(Boolean).join("; ");
}

function tokenWords(view, pass, cell) {
  if (view.there && !isSet(bytesOf(view, view.there), cell)) return "not looked at";
  const layers = pass.kept.flatMap((place, index) => (isSet(bytesOf(view, place), cell) ? [index + 1] : []));
  let score = "";
  if (pass.scores) {
    const [low, high] = pass.scores.bounds;
    const value = low + (bytesOf(view, pass.scores.values)[cell] / 255) * (high - low);
    score = `score ${value.toFixed(2)}, `;
  }
  if (!layers.length) return `${score}not kept`;
  const all = layers.length === pass.kept.length;
  return `${score}kept by ${all ? "all layers" : `layer ${layers.join(", ")}`}`;
}
