// Below a picture: the detections, the attention of one, and what the stages cost.

function foundList(number) {
  const { column } = PANELS[number];
  const pass = passOf(column);
  const shownOnes = visible(pass);
  const heading = element("h3", { id: `found-${number}` }, several(shownOnes.length, "detection"));
  if (!shownOnes.length) {
    const least = Number(control("threshold").min);
    const words =
      state.threshold > least
        ? "No detection reaches the minimum score. Move its slider to the left."
        : `No detection has a score of ${least} or more.`;
    return [heading, element("p", { class: "note" }, words)];
  }
  const other = otherPass(column);
  const pairs = other && matches(pass, other);
  const chosen = activeIn(number);
  const first = chosen === null ? shownOnes[0] : chosen;
  const rows = shownOnes.map((index) => {
    const words = pairs ? otherWords(column, other, pairs.get(index)) : "";
    return foundRow(number, index, { words, chosen: index === chosen, reachable: index === first });
  });
  const list = element("ul", { class: "found", "aria-labelledby": `found-${number}` }, ...rows);
  list.addEventListener("keydown", stepInList);
  return [heading, list];
}

/** The pass of the column beside: dense for sparse, sparse for dense; null where there is none. */
function otherPass(column) {
  if (!state.dense || column.model.missing.dense) return null;
  return passOf({ ...column, dense: !column.dense });
}

function otherWords(column, other, index) {
  const name = column.dense ? "sparse" : "dense";
  return index === null ? `not in ${name}` : `${name} ${other.detections.scores[index].toFixed(2)}`;
}

function foundRow(number, index, { words, chosen, reachable }) {
  const { column } = PANELS[number];
  const { labels, scores } = passOf(column).detections;
  const button = element(
    "button",
    {
      type: "button",
      "aria-pressed": String(chosen),
      "data-index": String(index),
      tabindex: reachable ? "0" : "-1",
      onclick: () => choose(number, index),
      onmouseenter: () => setHovered({ column: number, index }),
      onmouseleave: () => setHovered(null),
    },
    element("span", { class: "dot", style: `background:${column.model.colors[labels[index]]}` }),
    element("span", { class: "name" }, column.model.classes[labels[index]]),
    element("span", { class: "score" }, scores[index].toFixed(2)),
    words ? element("span", { class: "other" }, words) : null,
  );
  return element("li", {}, button);
}

/** Select a detection, or deselect it. */
function choose(number, index) {
  const held = state.held;
  const same = held && held.column === number && held.index === index;
  state.hovered = null;
  state.held = same ? null : { column: number, index };
  updateActive();
}

function stepInList(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (next) next.focus();
}

/** Mark the active detection in the lists without rebuilding them. */
function markFound(number) {
  const chosen = activeIn(number);
  for (const button of PANELS[number].found.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === chosen));
  }
}

function attentionTable(number) {
  const { column } = PANELS[number];
  const chosen = activeIn(number);
  const pass = passOf(column);
  if (chosen === null) return [];
  const heading = element("h3", {}, "Attention of the chosen detection");
  if (column.model.missing.attention) return [element("p", { class: "absent" }, column.model.missing.attention)];
  const { attention } = pass;
  if (!attention || chosen >= attention.count) {
    const count = attention ? attention.count : 0;
    const words = `Attention was recorded for the best ${several(count, "detection")} of each pass, and this one is not among them.`;
    return [element("p", { class: "absent" }, words)];
  }
  if (attention.kind === "map") return [heading, element("p", { class: "note" }, MAP_LEGEND)];
  return [heading, ...pointTables(viewOf(column), attention, chosen)];
}

/** Shares of the attention by level and by head. */
function pointTables(view, attention, chosen) {
  const points = samplingPoints(view, attention, chosen);
  const { heads, levels } = attention;
  const byLevel = new Array(levels).fill(0);
  const outside = points.reduce((sum, point) => {
    byLevel[point.level] += point.weight / heads;
    const inside = point.x >= 0 && point.x <= 1 && point.y >= 0 && point.y <= 1;
    return sum + (inside ? 0 : point.weight / heads);
  }, 0);
  const rows = byLevel.map((share, level) => {
    const color = css(strideColor(view.levels[level].stride));
    const bar = element("span", { class: "bar", style: `width:${100 * share}px;background:${color}` });
    return row([`stride ${view.levels[level].stride}`, percent(share), bar]);
  });
  const beyond = outside > 0.0005 ? ` ${percent(outside)} of it is outside of the picture.` : "";
  const which = state.head ? `Circles: head ${Math.min(state.head, heads)} of ${heads}.` : `Circles: all ${heads} heads.`;
  return [
    element("p", { class: "note" }, `The share of each level in the last decoder layer, mean over the heads.${beyond} ${which}`),
    table(["level", "attention", ""], rows),
  ];
}

function row(cells) {
  return element(
    "tr",
    {},
    ...cells.map((cell, place) => {
      const isBar = typeof cell !== "string";
      const kind = isBar ? "bars" : place ? "number" : null;
      return element("td", kind ? { class: kind } : {}, cell);
    }),
  );
}

function table(names, rows) {
  const heads = names.map((name, place) =>
    name ? element("th", { scope: "col", class: place ? "number" : null }, name) : element("td"),
  );
  return element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
}

/** How many tokens of each level the layers keep; layers that keep the same ones are one. */
function keptTable(number) {
  const { column } = PANELS[number];
  const pass = passOf(column);
  if (column.dense || !pass.counts || column.model.missing.dense) return [];
  const alike = pass.kept.every(([first]) => first === pass.kept[0][0]);
  const layers = alike ? [pass.counts[0]] : pass.counts;
  const names = layers.map((_, index) => (alike ? "each layer" : `layer ${index + 1}`));
  const rows = viewOf(column).levels.map((level, index) => {
    const counts = layers.map((layer) => `${layer[index]}`);
    return row([`stride ${level.stride}`, `${level.tokens}`, ...counts]);
  });
  if (pass.scores) {
    const lowest = layers.map((_, index) => pass.scores.lowest[index]);
    rows.push(row(["lowest kept score", "", ...lowest.map((each) => (each === null ? "-" : each.toFixed(2)))]));
  }
  return [element("h3", {}, "Kept tokens"), table(["level", "tokens", ...names], rows)];
}

/** GFLOPs and milliseconds of each stage; bars are shares of the largest total of the picture. */
function costTable(number) {
  const { column } = PANELS[number];
  const { gflops, ms } = passOf(column).cost;
  const heading = element("h3", {}, "Cost by stage");
  const stages = [...new Set([...Object.keys(ms || {}), ...Object.keys(gflops || {})])];
  if (!stages.length) {
    const words = "The stages of an exported file are not known, and its time was not measured.";
    return [heading, element("p", { class: "absent" }, words)];
  }
  const most = Math.max(...stages.map((name) => (ms || gflops)[name] || 0));
  const ordered = Object.keys(STAGES).filter((name) => stages.includes(name));
  const rows = ordered.map((name) => {
    const share = ((ms || gflops)[name] || 0) / most;
    const bar = element("span", { class: "bar", style: `width:${(90 * share).toFixed(1)}px` });
    return row([STAGES[name], figure(gflops, name), figure(ms, name), bar]);
  });
  const sum = (values) => Object.values(values).reduce((a, b) => a + b, 0);
  const total = [gflops, ms].map((values) => (values ? sum(values).toFixed(2) : "-"));
  rows.push(row(["total", ...total]));
  return [
    heading,
    table(["stage", "GFLOPs", "ms", ""], rows),
    element("p", { class: "note" }, costNote(column, gflops, ms)),
  ];
}

function figure(values, name) {
  if (!values) return "-";
  return values[name] === undefined ? "" : values[name].toFixed(2);
}

function costNote(column, gflops, ms) {
  const bars = ms ? "Bars: milliseconds." : "Bars: GFLOPs.";
  const stages = gflops ? "" : " The stages of an exported file are not known, nor are its GFLOPs.";
  const heads = gflops && gflops.heads && ms && !ms.heads ? " The heads' time is part of the decoder's." : "";
  return `${column.model.protocol} ${bars}${stages}${heads}`;
}
