// Sentences and numbers of the explorer.

const OVERLAYS = [
  { id: "kept", name: "Kept tokens" },
  { id: "scores", name: "Scores" },
  { id: "objects", name: "Object tokens" },
  { id: "tiles", name: "Tiles" },
  { id: "none", name: "None" },
];

const STAGES = {
  backbone: "backbone",
  neck: "neck",
  look: "look at the tiles",
  scorer: "scorer, selector",
  encoder: "encoder",
  query_initializer: "queries",
  decoder: "decoder",
  heads: "heads of the decoder",
  rpn: "region proposals",
  roi_heads: "box heads",
  head: "head",
  other: "other",
  whole: "whole model",
};

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function several(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** The name of a keep ratio on the slider. */
function ratioWords(ratio) {
  return ratio === null ? "own" : String(ratio);
}

function layerWords(layer) {
  return layer === 0 ? "all" : String(layer);
}

/** What the cells show, for the chosen layer and level. */
function keptLegend(layer, level, layers) {
  const where = layer === 0 ? "at least one encoder layer updates" : `encoder layer ${layer} updates`;
  const start = `Bright cells hold the tokens that ${where}; the others stay as the neck made them.`;
  if (level === 0) return `${start} The color is the stride (in pixels) of the finest level that is kept in a place:`;
  if (layer === 0 && layers > 1) return `${start} The color is the number of layers that update the token:`;
  return start;
}

const SCORE_LEGEND = {
  0: "The color is the best score of all levels in a place, from the lowest to the highest of the picture (logits). The selector keeps the tokens with the best scores.",
  1: "The color is the score of each token, from the lowest to the highest of the picture (logits). The selector keeps the tokens with the best scores.",
};
const OBJECT_LEGEND =
  "Red dots are the object tokens: the kept tokens that look most like an object of some class. They attend to each other before an encoder layer.";
const TILE_LEGEND =
  "The model saw the whole picture at a fraction of its size, then the outlined tiles at full size. It did not look at the dark tiles. The color is the score of each tile, from the lowest to the highest.";
const BOX_LEGEND =
  "Boxes are detections. Move the pointer over one, or choose it in the list, to see where its query looks in the last decoder layer.";
const POINT_LEGEND =
  "Circles are the sampling points of the chosen detection. Larger circles have more attention. The color is the stride (in pixels) of the level that is sampled:";
const MAP_LEGEND =
  "The color shows how much attention the query of the chosen detection pays to each token, in the last decoder layer, from none to most.";

/** What no model of the page has. */
function lackingWords(names) {
  const models = FACTS.models.length === 1 ? "This model has" : "These models have";
  const last = names.pop();
  return `${models} no ${names.length ? `${names.join(", ")} or ` : ""}${last} to show.`;
}

/** How many tokens a pass keeps. */
function keptWords(pass, view) {
  if (pass.keptShare === undefined) return "no tokens";
  const total = view.levels.reduce((sum, level) => sum + level.tokens, 0);
  const counts = pass.counts.map((layer) => layer.reduce((sum, each) => sum + each, 0));
  const same = counts.every((each) => each === counts[0]);
  const pooled = pass.pooled ? `; the others are pooled into ${pass.pooled}` : "";
  if (same && counts[0] === total) return `all ${total} tokens in each of ${several(counts.length, "layer")}${pooled}`;
  const which = same ? `${counts[0]} in each layer` : `${counts.join(", ")} by layer`;
  return `${percent(pass.keptShare)} of ${total} tokens (${which})${pooled}`;
}
