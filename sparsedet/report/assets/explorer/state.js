// What is chosen, and what follows from it.

const FACTS = readData("explorer");
const RATIOS = [
  ...new Set(FACTS.models.flatMap((model) => model.ratios).filter((ratio) => ratio !== null)),
].sort((a, b) => a - b);

const state = {
  picture: 0,
  overlay: "kept",
  ratio: 0,
  layer: 0,
  level: 0,
  head: 0,
  threshold: FACTS.threshold,
  dense: FACTS.models.length === 1,
  hovered: null, // { column, index } of a detection
  held: null,
};
let shown = null; // the loaded picture

/** The columns of the page: every model, and beside it the same weights without selection. */
function columnsOf() {
  return FACTS.models.flatMap((model, index) => {
    const column = { model, index, dense: false };
    const beside = state.dense && !model.missing.dense;
    return beside ? [column, { model, index, dense: true }] : [column];
  });
}

/** The pass that a column shows: the computed keep ratio next to the chosen one. */
function passOf(column) {
  const { passes } = shown.views[column.index];
  if (column.dense) return passes[passes.length - 1];
  if (passes[0].ratio === null) return passes[0];
  const wanted = RATIOS[state.ratio];
  const distance = (pass) => Math.abs(pass.ratio - wanted);
  return passes.reduce((best, pass) => (distance(pass) < distance(best) ? pass : best));
}

function viewOf(column) {
  return shown.views[column.index];
}

/** Numbers of the detections of a pass that reach the least score. */
function visible(pass) {
  const scores = pass.detections.scores;
  return scores.map((_, index) => index).filter((index) => scores[index] >= state.threshold - 1e-9);
}

/** The detection whose attention is shown. */
function active() {
  return state.hovered || state.held;
}

/** The number of the active detection in a column; null for none. */
function activeIn(number) {
  const chosen = active();
  if (!chosen || chosen.column !== number) return null;
  const pass = passOf(columnsOf()[number]);
  return visible(pass).includes(chosen.index) ? chosen.index : null;
}

/** Whether no model of the page can show a part. */
function missesEverywhere(part) {
  return FACTS.models.every((model) => model.missing[part]);
}

/** The largest number of encoder layers. */
function mostLayers() {
  return Math.max(0, ...shown.views.map((view) => (view.passes[0].kept || []).length));
}

/** The strides of the levels of all models, fine to coarse. */
function strides() {
  const all = shown.views.flatMap((view) => view.levels.map((level) => level.stride));
  return [...new Set(all)].sort((a, b) => a - b);
}

/** The color of a stride: yellow is the finest of all. */
function strideColor(stride) {
  const all = strides();
  return stepColor(all.length - all.indexOf(stride), all.length);
}

/** The number of the chosen level in a model, from 1; 0 = all, also where it has no such level. */
function levelIn(view) {
  if (state.level === 0) return 0;
  return view.levels.findIndex((level) => level.stride === strides()[state.level - 1]) + 1;
}

function mostHeads() {
  const attentions = shown.views.flatMap((view) => view.passes.map((pass) => pass.attention));
  return Math.max(0, ...attentions.map((each) => (each && each.heads) || 0));
}

function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

/** For detections of one pass the one of another that is the same object, or null. */
function matches(pass, other) {
  const free = new Set(visible(other));
  const found = new Map();
  for (const index of visible(pass)) {
    let best = null;
    for (const number of free) {
      if (other.detections.labels[number] !== pass.detections.labels[index]) continue;
      const share = overlap(pass.detections.boxes[index], other.detections.boxes[number]);
      if (share >= 0.5 && (!best || share > best.share)) best = { number, share };
    }
    if (best) free.delete(best.number);
    found.set(index, best && best.number);
  }
  return found;
}
