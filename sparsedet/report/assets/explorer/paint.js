// Drawing a column's picture: overlay, boxes, sampling points.

const DIM = 0.72;
const TINT = 0.3;
const BORDER_FROM = 5; // sides of cells, in pixels of the screen, whose groups get a border

const THINNEST = 8; // long side over short side from which a picture is stretched

/** Width over height of the canvas: that of the picture, unless there would be nothing to see. */
function shapeOf([height, width]) {
  return Math.min(Math.max(width / height, 1 / THINNEST), THINNEST);
}

/** Make a canvas as large as it is shown; its context is in units of the picture's width, 1. */
function prepare(canvas) {
  const shape = shapeOf(shown.size);
  const scale = window.devicePixelRatio || 1;
  canvas.style.setProperty("--shape", String(shape));
  const across = Math.max(1, Math.round(canvas.clientWidth * scale));
  const down = Math.max(1, Math.round(across / shape));
  if (canvas.width !== across || canvas.height !== down) {
    canvas.width = across;
    canvas.height = down;
  }
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalAlpha = 1;
  context.filter = "none";
  return { context, width: across, height: down, scale };
}

function paintColumn(canvas, column, number) {
  const area = prepare(canvas);
  const pass = passOf(column);
  const view = viewOf(column);
  const chosen = activeIn(number);
  const asMap = chosen !== null && pass.attention && pass.attention.kind === "map" && chosen < pass.attention.count;
  paintPicture(area, asMap ? "map" : overlayOf(column));
  if (asMap) paintAttentionMap(area, view, pass, chosen);
  else paintOverlay(area, column, view, pass);
  paintBoxes(area, column, pass, chosen);
  const asPoints = chosen !== null && pass.attention && pass.attention.kind === "points";
  if (asPoints && chosen < pass.attention.count) paintPoints(area, view, pass, chosen);
}

/** The overlay of a column: none where the model has nothing to show for the chosen one. */
function overlayOf(column) {
  return column.model.missing[state.overlay] ? "none" : state.overlay;
}

function paintPicture(area, overlay) {
  const { context, width, height } = area;
  if (["scores", "map"].includes(overlay)) context.filter = "grayscale(1)";
  context.imageSmoothingEnabled = true;
  context.drawImage(shown.image, 0, 0, width, height);
  context.filter = "none";
}

function paintOverlay(area, column, view, pass) {
  const overlay = overlayOf(column);
  if (overlay === "kept" || overlay === "objects") {
    paintKept(area, view, pass);
    if (overlay === "objects") paintDots(area, view, pass);
  } else if (overlay === "scores") {
    const bytes = bytesOf(view, pass.scores.values);
    const grid = valueGrid(view, bytes, levelIn(view));
    paintCells(area, view, grid, (value) => [...rampColor(value / 255), 0.72]);
  } else if (overlay === "tiles") {
    paintTiles(area, view.tiles);
  }
  if (["kept", "objects", "scores"].includes(overlay)) paintAbsent(area, view);
}

/** Kept cells in their colors, the others dim; a picture that is kept alike stays as it is. */
function paintKept(area, view, pass) {
  const level = levelIn(view);
  const grid = keptGrid(view, pass.kept, state.layer, level);
  const layers = state.layer === 0 ? mostLayers() : 1;
  const colorOf = (value) => (level ? stepColor(value, layers) : strideColor(view.levels[value - 1].stride));
  if (grid.values[0] && grid.values.every((value) => value === grid.values[0])) return;
  paintCells(area, view, grid, (value) =>
    value && value <= (level ? layers : view.levels.length) ? [...colorOf(value), TINT] : [0, 0, 0, DIM],
  );
  paintBorders(area, view, grid);
}

function paintAttentionMap(area, view, pass, chosen) {
  const bytes = bytesOf(view, pass.attention.values);
  const cells = bytes.length / pass.attention.count;
  const grid = valueGrid(view, bytes, levelIn(view), chosen * cells);
  paintCells(area, view, grid, (value) => [...rampColor(value / 255), 0.72]);
}

/** Side lengths of a cell on the canvas. */
function cellSize(area, view, stride) {
  const [height, width] = view.input;
  return [(stride * area.width) / width, (stride * area.height) / height];
}

const SCRATCH = document.createElement("canvas");

/** Cells as blocks of color; `colorOf` gives [r, g, b, alpha] of a value. */
function paintCells(area, view, grid, colorOf) {
  const colors = new Uint8ClampedArray(4 * 256);
  for (let value = 0; value < 256; value += 1) {
    const [red, green, blue, alpha] = colorOf(value);
    colors.set([red, green, blue, 255 * alpha], 4 * value);
  }
  const words = new Uint32Array(colors.buffer);
  const pixels = new ImageData(grid.columns, grid.rows);
  const drawn = new Uint32Array(pixels.data.buffer);
  for (let cell = 0; cell < drawn.length; cell += 1) drawn[cell] = words[grid.values[cell]];
  SCRATCH.width = grid.columns;
  SCRATCH.height = grid.rows;
  SCRATCH.getContext("2d").putImageData(pixels, 0, 0);
  const [across, down] = cellSize(area, view, grid.stride);
  area.context.imageSmoothingEnabled = false;
  area.context.drawImage(SCRATCH, 0, 0, grid.columns * across, grid.rows * down);
}

/** Lines between cells of different values. */
function paintBorders(area, view, grid) {
  const [across, down] = cellSize(area, view, grid.stride);
  if (across < BORDER_FROM * area.scale) return;
  const { context } = area;
  const { rows, columns, values } = grid;
  context.beginPath();
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const value = values[row * columns + column];
      if (column + 1 < columns && values[row * columns + column + 1] !== value) {
        context.moveTo((column + 1) * across, row * down);
        context.lineTo((column + 1) * across, (row + 1) * down);
      }
      if (row + 1 < rows && values[(row + 1) * columns + column] !== value) {
        context.moveTo(column * across, (row + 1) * down);
        context.lineTo((column + 1) * across, (row + 1) * down);
      }
    }
  }
  context.lineWidth = area.scale;
  context.strokeStyle = "rgba(255, 255, 255, 0.7)";
  context.stroke();
}

/** A dot in each cell of an object token. */
function paintDots(area, view, pass) {
  const sets = chosenSets(view, pass.objects, state.layer);
  const { context } = area;
  context.fillStyle = DOT;
  view.levels.forEach((level, index) => {
    if (levelIn(view) > 0 && levelIn(view) !== index + 1) return;
    const [across, down] = cellSize(area, view, level.stride);
    const radius = Math.min(Math.max(0.2 * across, 1.5 * area.scale), 5 * area.scale);
    countSets(view, sets, index).forEach((count, cell) => {
      if (!count) return;
      const x = ((cell % level.columns) + 0.5) * across;
      const y = (Math.floor(cell / level.columns) + 0.5) * down;
      context.beginPath();
      context.arc(Math.min(x, area.width - radius), Math.min(y, area.height - radius), radius, 0, 7);
      context.fill();
    });
  });
}

/** Cells of the chosen level that the backbone did not see are black. */
function paintAbsent(area, view) {
  const level = levelIn(view);
  if (!view.there || level === 0) return;
  const { rows, columns, stride } = view.levels[level - 1];
  const values = countSets(view, [bytesOf(view, view.there)], level - 1);
  paintCells(area, view, { rows, columns, stride, values }, (value) => [0, 0, 0, value ? 0 : 0.92]);
}

function paintTiles(area, tiles) {
  const { context, width, height, scale } = area;
  const low = Math.min(...tiles.scores);
  const span = Math.max(Math.max(...tiles.scores) - low, 1e-6);
  tiles.boxes.forEach(([left, top, right, bottom], index) => {
    const place = [left * width, top * height, (right - left) * width, (bottom - top) * height];
    context.globalAlpha = tiles.looked[index] ? 0.22 : 0.3;
    if (!tiles.looked[index]) {
      context.fillStyle = "#000000";
      context.globalAlpha = 0.5;
      context.fillRect(...place);
      context.globalAlpha = 0.3;
    }
    if (tiles.scored) {
      context.fillStyle = css(rampColor((tiles.scores[index] - low) / span));
      context.fillRect(...place);
    }
    context.globalAlpha = 1;
    if (tiles.looked[index]) {
      context.lineWidth = 2 * scale;
      context.strokeStyle = "#ffffff";
      context.strokeRect(...place);
    }
  });
}

function paintBoxes(area, column, pass, chosen) {
  const best = visible(pass);
  const order = chosen === null ? best : [chosen, ...best.filter((index) => index !== chosen)];
  const faded = (index) => chosen !== null && index !== chosen;
  for (const index of [...order].reverse()) {
    area.context.globalAlpha = faded(index) ? 0.4 : 1;
    paintBox(area, column, pass, index, index === chosen);
  }
  const taken = [];
  for (const index of order) {
    area.context.globalAlpha = faded(index) ? 0.5 : 1;
    paintLabel(area, column, pass, index, taken);
  }
  area.context.globalAlpha = 1;
}

/** Left, top, width and height of a box on the canvas. */
function boxOf(area, [left, top, right, bottom]) {
  const { width, height } = area;
  return [left * width, top * height, (right - left) * width, (bottom - top) * height];
}

function paintBox(area, column, pass, index, highlighted) {
  const { context, scale } = area;
  const place = boxOf(area, pass.detections.boxes[index]);
  if (highlighted) {
    context.lineWidth = 6 * scale;
    context.strokeStyle = "#ffffff";
    context.strokeRect(...place);
  }
  context.lineWidth = (highlighted ? 3 : 2) * scale;
  context.strokeStyle = column.model.colors[pass.detections.labels[index]];
  context.strokeRect(...place);
}

/** A name, cut where it would be wider than `most`; the list has it in full. */
function shortened(context, name, most) {
  if (context.measureText(name).width <= most) return name;
  const letters = [...name];
  while (letters.length > 1 && context.measureText(`${letters.join("")}\u2026`).width > most) letters.pop();
  return `${letters.join("")}\u2026`;
}

/** Class and score at a box, where no better detection's label is. */
function paintLabel(area, column, pass, index, taken) {
  const { context, width, scale } = area;
  const label = pass.detections.labels[index];
  const size = 12 * scale;
  context.font = `${size}px system-ui, "DejaVu Sans", sans-serif`;
  const score = pass.detections.scores[index].toFixed(2);
  const words = `${shortened(context, column.model.classes[label], width / 2)} ${score}`;
  const across = context.measureText(words).width + 8 * scale;
  const line = size + 5 * scale;
  const [left, top, , down] = boxOf(area, pass.detections.boxes[index]);
  const x = Math.max(0, Math.min(left, width - across));
  const free = (y) =>
    y >= 0 &&
    y + line <= area.height &&
    taken.every(([l, t, w]) => x >= l + w || x + across <= l || y >= t + line || y + line <= t);
  const y = [top - line, top, top + line, top + down].find(free);
  if (y === undefined) return;
  taken.push([x, y, across]);
  context.fillStyle = column.model.colors[label];
  context.fillRect(x, y, across, line);
  context.fillStyle = inkOn(parseHex(column.model.colors[label]));
  context.textBaseline = "middle";
  context.fillText(words, x + 4 * scale, y + line / 2);
}

function paintPoints(area, view, pass, chosen) {
  const { context, width, height, scale } = area;
  const { heads } = pass.attention;
  const points = samplingPoints(view, pass.attention, chosen).filter(
    (point) => state.head === 0 || point.head === Math.min(state.head, heads) - 1,
  );
  points.sort((a, b) => a.weight - b.weight);
  for (const point of points) {
    const radius = (1.2 + 9 * Math.sqrt(point.weight)) * scale;
    context.beginPath();
    context.arc(point.x * width, point.y * height, radius, 0, 7);
    context.fillStyle = css(strideColor(view.levels[point.level].stride));
    context.globalAlpha = 0.9;
    context.fill();
    context.lineWidth = 1.2 * scale;
    context.strokeStyle = "#000000";
    context.stroke();
  }
  context.globalAlpha = 1;
}
