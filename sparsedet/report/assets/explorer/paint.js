// Drawing a column's picture: overlay, boxes, sampling points.

const DIM = 0.66;
const TINT = 0.34;
const BORDER_FROM = 5; // sides of cells, in pixels of the screen, whose groups get a border

/** Make a canvas as large as it is shown; its context is in units of the picture's width, 1. */
function prepare(canvas) {
  const [height, width] = shown.size;
  const scale = window.devicePixelRatio || 1;
  const across = Math.max(1, Math.round(canvas.clientWidth * scale));
  const down = Math.max(1, Math.round((across * height) / width));
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
    const grid = keptGrid(view, pass.kept, state.layer, Math.min(state.level, view.levels.length));
    paintCells(area, view, grid, (value) =>
      value ? [...stepColor(value, grid.most), TINT] : [0, 0, 0, DIM],
    );
    paintBorders(area, view, grid);
    if (overlay === "objects") paintDots(area, view, pass);
  } else if (overlay === "scores") {
    const bytes = bytesOf(view, pass.scores.values);
    const grid = valueGrid(view, bytes, Math.min(state.level, view.levels.length));
    paintCells(area, view, grid, (value) => [...rampColor(value / 255), 0.72]);
  } else if (overlay === "tiles") {
    paintTiles(area, view.tiles);
  }
  if (["kept", "objects", "scores"].includes(overlay)) paintAbsent(area, view);
}

function paintAttentionMap(area, view, pass, chosen) {
  const bytes = bytesOf(view, pass.attention.values);
  const cells = bytes.length / pass.attention.count;
  const level = Math.min(state.level, view.levels.length);
  const grid = valueGrid(view, bytes, level, chosen * cells);
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
  const colors = Array.from({ length: 256 }, (_, value) => colorOf(value));
  const pixels = new ImageData(grid.columns, grid.rows);
  grid.values.forEach((value, cell) => {
    const [red, green, blue, alpha] = colors[value];
    pixels.data.set([red, green, blue, 255 * alpha], 4 * cell);
  });
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
    if (state.level > 0 && Math.min(state.level, view.levels.length) !== index + 1) return;
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
  if (!view.there || state.level === 0) return;
  const level = Math.min(state.level, view.levels.length);
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
  const order = visible(pass).reverse();
  if (chosen !== null) order.push(chosen);
  order.forEach((index, place) => {
    const highlighted = chosen !== null && place === order.length - 1;
    if (index === chosen && !highlighted) return;
    area.context.globalAlpha = chosen === null || highlighted ? 1 : 0.4;
    paintBox(area, column, pass, index, highlighted);
  });
  area.context.globalAlpha = 1;
}

function paintBox(area, column, pass, index, highlighted) {
  const { context, width, height, scale } = area;
  const [left, top, right, bottom] = pass.detections.boxes[index];
  const place = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  const label = pass.detections.labels[index];
  const color = column.model.colors[label];
  if (highlighted) {
    context.lineWidth = 6 * scale;
    context.strokeStyle = "#ffffff";
    context.strokeRect(...place);
  }
  context.lineWidth = (highlighted ? 3 : 2) * scale;
  context.strokeStyle = color;
  context.strokeRect(...place);
  const words = `${column.model.classes[label]} ${pass.detections.scores[index].toFixed(2)}`;
  paintLabel(area, words, color, place);
}

function paintLabel(area, words, color, [left, top, , down]) {
  const { context, width, height, scale } = area;
  const size = 12 * scale;
  context.font = `${size}px system-ui, "DejaVu Sans", sans-serif`;
  const across = context.measureText(words).width + 8 * scale;
  const x = Math.max(0, Math.min(left, width - across));
  const line = size + 5 * scale;
  let y = top - line;
  if (y < 0) y = top + down + line <= height ? top + down : Math.max(top, 0);
  context.fillStyle = color;
  context.fillRect(x, y, across, line);
  context.fillStyle = inkOn(parseHex(color));
  context.textBaseline = "middle";
  context.fillText(words, x + 4 * scale, y + line / 2);
}

function paintPoints(area, view, pass, chosen) {
  const { context, width, height, scale } = area;
  const { levels, heads } = pass.attention;
  const points = samplingPoints(view, pass.attention, chosen).filter(
    (point) => state.head === 0 || point.head === Math.min(state.head, heads) - 1,
  );
  points.sort((a, b) => a.weight - b.weight);
  for (const point of points) {
    const radius = (1.2 + 9 * Math.sqrt(point.weight)) * scale;
    context.beginPath();
    context.arc(point.x * width, point.y * height, radius, 0, 7);
    context.fillStyle = css(stepColor(levels - point.level, levels));
    context.globalAlpha = 0.9;
    context.fill();
    context.lineWidth = 1.2 * scale;
    context.strokeStyle = "#000000";
    context.stroke();
  }
  context.globalAlpha = 1;
}
