// The legend, and drawing what has changed.

/** What is said of boxes and of the attention of the chosen one. */
function attentionLegend(swatches) {
  const chosen = active();
  const recorded = chosen && passOf(PANELS[chosen.column].column).attention;
  const attention = recorded && chosen.index < recorded.count ? recorded : null;
  if (attention && attention.kind === "points") return [POINT_LEGEND, " ", ...swatches()];
  if (attention) return [MAP_LEGEND, rampBar()];
  return [missesEverywhere("attention") ? "Boxes are detections." : BOX_LEGEND];
}

/** The paragraphs of the legend. */
function legendParts() {
  const levels = strides();
  const swatches = () => levels.map((stride) => swatch(String(stride), strideColor(stride)));
  const layers = mostLayers();
  const parts = [];
  if (state.overlay === "kept" || state.overlay === "objects") {
    const counts = Array.from({ length: layers }, (_, index) => swatch(String(index + 1), stepColor(index + 1, layers)));
    const colors = state.level === 0 ? swatches() : state.layer === 0 && layers > 1 ? counts : [];
    if (levels.length) parts.push([keptLegend(state.layer, state.level, layers), " ", ...colors]);
    if (state.overlay === "objects") parts.push([OBJECT_LEGEND]);
  } else if (state.overlay === "scores") {
    parts.push([SCORE_LEGEND[Math.min(state.level, 1)], rampBar()]);
  } else if (state.overlay === "tiles") parts.push([TILE_LEGEND, rampBar()]);
  parts.push(attentionLegend(swatches));
  const lacking = OVERLAYS.filter(({ id }) => missesEverywhere(id));
  if (lacking.length) parts.push([lackingWords(lacking.map(({ name }) => name.toLowerCase()))]);
  return parts.map((children) => element("p", {}, ...children));
}

/** Draw everything anew. */
function update() {
  if (!shown) return;
  updateControls();
  fill(control("legend"), ...legendParts());
  PANELS.forEach((_, number) => updatePanel(number));
}

/** Draw what depends on the chosen detection. */
function updateActive() {
  if (!shown) return;
  fill(control("legend"), ...legendParts());
  PANELS.forEach((panel, number) => {
    paintPanel(number);
    markFound(number);
    fill(panel.attention, ...attentionTable(number));
  });
}

/** Go to a picture; the next one is loaded meanwhile. */
async function show(index) {
  state.picture = index;
  const loaded = await loadPicture(index);
  if (state.picture !== index) return; // another one was asked for since
  const changed = !shown || shown.index !== index;
  shown = loaded;
  if (changed) state.held = state.hovered = null;
  control("status").textContent = `picture ${index + 1} of ${FACTS.pictures.length}: ${FACTS.pictures[index].name}`;
  update();
  document.documentElement.dataset.picture = String(index);
  if (index + 1 < FACTS.pictures.length) setTimeout(() => loadPicture(index + 1), 100);
}

/** A sentence in place of the columns. */
function sayInstead(words) {
  fill(control("columns"), element("p", { class: "absent", role: "alert" }, words));
}

function start() {
  if (typeof DecompressionStream === "undefined") {
    sayInstead("This browser is too old to unpack the page. Open it in a browser of 2023 or later.");
    return;
  }
  const own = FACTS.models.map((model) => model.ownRatio).find((ratio) => ratio !== null);
  state.ratio = Math.max(RATIOS.indexOf(own), 0);
  document.getElementById("subtitle").textContent = FACTS.models.map((model) => model.name).join(" | ");
  const first = OVERLAYS.find(({ id }) => !missesEverywhere(id));
  state.overlay = first.id;
  buildControls();
  buildStrip();
  buildColumns();
  addEventListener("resize", () => PANELS.forEach((_, number) => shown && paintPanel(number)));
  show(0).catch((error) => sayInstead(`The page is damaged (${error.message}). Write it again.`));
}

start();
