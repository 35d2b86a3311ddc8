// Sliders, choices and keys.

const control = (id) => document.getElementById(id);

function buildControls() {
  const choices = OVERLAYS.flatMap(({ id, name }, place) => {
    const input = element("input", { type: "radio", name: "overlay", id: `overlay-${id}`, value: id });
    input.addEventListener("change", () => set({ overlay: id }, `overlay: ${name}`));
    return [input, element("label", { for: `overlay-${id}`, title: `key ${place + 1}` }, name)];
  });
  control("overlays").append(...choices);
  control("ratio").max = Math.max(RATIOS.length - 1, 0);
  control("ratio").closest(".control").hidden = RATIOS.length < 2;
  control("threshold").value = state.threshold;
  listen("ratio", (value) => set({ ratio: Number(value) }, ""));
  listen("layer", (value) => set({ layer: Number(value) }, ""));
  listen("threshold", (value) => set({ threshold: Number(value) }, ""));
  listen("level", (value) => set({ level: Number(value) }, ""));
  listen("head", (value) => set({ head: Number(value) }, ""));
  control("dense").addEventListener("change", (event) => setDense(event.target.checked));
  control("dense").disabled = missesEverywhere("dense");
  document.addEventListener("keydown", onKey);
}

function listen(id, then) {
  control(id).addEventListener("input", (event) => then(event.target.value));
}

function buildStrip() {
  const buttons = FACTS.pictures.map(({ name, path, thumbnail }, index) =>
    element(
      "button",
      { type: "button", title: path, onclick: () => show(index) },
      element("img", { src: thumbnail, alt: "" }),
      element("span", {}, name),
    ),
  );
  fill(control("strip"), ...buttons);
}

/** Bring the controls to what is chosen; what the picture does not have is cut off. */
function updateControls() {
  const layers = mostLayers();
  const levels = strides();
  const heads = mostHeads();
  state.layer = Math.min(state.layer, layers);
  state.level = Math.min(state.level, levels.length);
  state.head = Math.min(state.head, heads);
  control("layer").max = layers;
  const values = { ratio: state.ratio, layer: state.layer, threshold: state.threshold };
  for (const [id, value] of Object.entries(values)) control(id).value = value;
  control("ratio-value").textContent = RATIOS.length ? ratioWords(RATIOS[state.ratio]) : "";
  control("layer-value").textContent = layerWords(state.layer);
  control("threshold-value").textContent = state.threshold.toFixed(2);
  control("ratio").setAttribute("aria-valuetext", `keep ratio ${control("ratio-value").textContent}`);
  control("layer").setAttribute("aria-valuetext", state.layer ? `layer ${state.layer}` : "all layers");
  options("level", ["all", ...levels.map((stride) => `stride ${stride}`)], state.level);
  options("head", ["all", ...Array.from({ length: heads }, (_, index) => `${index + 1}`)], state.head);
  control("layer").closest(".control").hidden = layers === 0;
  control("level").closest(".control").hidden = levels.length < 2;
  control("head").closest(".control").hidden = heads === 0;
  control("dense").checked = state.dense && !control("dense").disabled;
  for (const { id } of OVERLAYS) {
    control(`overlay-${id}`).checked = id === state.overlay;
    const lacking = Boolean(missesEverywhere(id));
    control(`overlay-${id}`).disabled = lacking;
    if (lacking) control(`overlay-${id}`).nextElementSibling.title = FACTS.models[0].missing[id];
  }
  [...control("strip").children].forEach((button, index) => {
    button.setAttribute("aria-current", String(index === state.picture));
  });
  keepInView(control("strip"), control("strip").children[state.picture]);
}

/** Scroll a row sideways, and nothing else, until a child of it is seen. */
function keepInView(strip, child) {
  const [row, own] = [strip.getBoundingClientRect(), child.getBoundingClientRect()];
  strip.scrollLeft += Math.min(own.left - row.left, 0) + Math.max(own.right - row.right, 0);
}

function options(id, names, chosen) {
  const select = control(id);
  if (select.length !== names.length || [...select.options].some((each, i) => each.text !== names[i])) {
    fill(select, ...names.map((name, value) => element("option", { value: String(value) }, name)));
  }
  select.value = String(chosen);
}

/** Change the state and draw; `words` are for readers of the screen. */
function set(changes, words) {
  Object.assign(state, changes);
  if (words) control("status").textContent = words;
  update();
}

function setDense(dense) {
  state.held = state.hovered = null;
  state.dense = dense;
  buildColumns();
  set({}, dense ? "dense model shown" : "dense model hidden");
}

function setOverlay(place) {
  const { id, name } = OVERLAYS[place];
  if (control(`overlay-${id}`).disabled) {
    set({}, `${name}: ${FACTS.models[0].missing[id]}`);
  } else set({ overlay: id }, `overlay: ${name}`);
}

/** One step of a number within its bounds. */
function stepped(value, step, most) {
  return Math.min(Math.max(value + step, 0), most);
}

function stepRatio(step) {
  const ratio = stepped(state.ratio, step, RATIOS.length - 1);
  if (RATIOS.length) set({ ratio }, `keep ratio ${RATIOS[ratio]}`);
}

function stepLayer(step) {
  const layer = stepped(state.layer, step, mostLayers());
  set({ layer }, layer ? `encoder layer ${layer}` : "all encoder layers");
}

function turn(id, key, words) {
  const value = (state[key] + 1) % control(id).length;
  set({ [key]: value }, `${words} ${control(id).options[value].text}`);
}

/** The next detection of the column that has the active one, or of the first. */
function stepDetection(step) {
  const chosen = active() || { column: 0, index: null };
  const { column } = chosen;
  const pass = passOf(PANELS[column].column);
  const order = visible(pass);
  if (!order.length) return;
  const place = order.indexOf(chosen.index);
  const next = place < 0 ? (step > 0 ? 0 : order.length - 1) : (place + step + order.length) % order.length;
  state.hovered = null;
  state.held = { column, index: order[next] };
  const { labels, scores } = pass.detections;
  const name = PANELS[column].column.model.classes[labels[order[next]]];
  control("status").textContent = `${name}, score ${scores[order[next]].toFixed(2)}`;
  updateActive();
}

function release() {
  state.held = state.hovered = null;
  control("status").textContent = "no detection selected";
  updateActive();
}

const KEYS = {
  n: () => show(stepped(state.picture, 1, FACTS.pictures.length - 1)),
  p: () => show(stepped(state.picture, -1, FACTS.pictures.length - 1)),
  "[": () => stepRatio(-1),
  "]": () => stepRatio(1),
  ",": () => stepLayer(-1),
  ".": () => stepLayer(1),
  l: () => turn("level", "level", "level"),
  h: () => mostHeads() && turn("head", "head", "attention head"),
  j: () => stepDetection(1),
  k: () => stepDetection(-1),
  d: () => control("dense").disabled || setDense(!state.dense),
  t: toggleTheme,
  Escape: release,
  "?": () => (control("help").open = !control("help").open),
  ...Object.fromEntries(OVERLAYS.map((_, place) => [String(place + 1), () => setOverlay(place)])),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !shown) return;
  const act = KEYS[event.key];
  if (!act || (event.target.tagName === "SELECT" && event.key !== "Escape")) return;
  event.preventDefault();
  act();
}
