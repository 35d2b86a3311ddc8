// Pictures and token sets, unpacked when they are first needed.

const LOADED = new Map();
const MOST_LOADED = 8;

/** The bytes of a pack: base64 of zlib. */
async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function decodeImage(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

async function loadOnce(index) {
  const data = readData(`picture-${index}`);
  const image = await decodeImage(data.image);
  for (const view of data.views) view.bytes = await unpack(view.pack);
  return { index, size: data.size, image, views: data.views };
}

/** A picture with its views; the last few stay loaded. */
function loadPicture(index) {
  const found = LOADED.get(index) || loadOnce(index);
  LOADED.delete(index);
  LOADED.set(index, found);
  while (LOADED.size > MOST_LOADED) LOADED.delete(LOADED.keys().next().value);
  return found;
}

function bytesOf(view, [first, length]) {
  return new Uint8Array(view.bytes, first, length);
}

/** Whether token `index` is in a set of bits. */
function isSet(bits, index) {
  return (bits[index >> 3] >> (index & 7)) & 1;
}

/** The number of the first cell of each level. */
function levelStarts(view) {
  const starts = [];
  let next = 0;
  for (const level of view.levels) {
    starts.push(next);
    next += level.rows * level.columns;
  }
  return starts;
}

/** For each cell of a level how many of the sets have it. */
function countSets(view, sets, level) {
  const { rows, columns } = view.levels[level];
  const start = levelStarts(view)[level];
  const counts = new Uint8Array(rows * columns);
  for (const bits of sets) {
    for (let cell = 0; cell < counts.length; cell += 1) counts[cell] += isSet(bits, start + cell);
  }
  return counts;
}

/** The sets of one layer, or of all of them; equal sets are unpacked once. */
function chosenSets(view, places, layer) {
  if (!places) return [];
  const chosen = layer === 0 ? places : [places[Math.min(layer, places.length) - 1]];
  return chosen.map((place) => bytesOf(view, place));
}

/** Cells of a grid as fine as level `first`, each with the value that `choose` finds for it. */
function overLevels(view, choose) {
  const fine = view.levels[0];
  const values = new Uint8Array(fine.rows * fine.columns);
  for (let row = 0; row < fine.rows; row += 1) {
    for (let column = 0; column < fine.columns; column += 1) {
      values[row * fine.columns + column] = choose((level) => {
        const { stride, columns, rows } = view.levels[level];
        const down = Math.min(Math.floor(((row + 0.5) * fine.stride) / stride), rows - 1);
        const across = Math.min(Math.floor(((column + 0.5) * fine.stride) / stride), columns - 1);
        return down * columns + across;
      });
    }
  }
  return { rows: fine.rows, columns: fine.columns, stride: fine.stride, values };
}

/** Kept cells: 0 = not kept, else the number of layers; of all levels, 1 + the finest level. */
function keptGrid(view, places, layer, level) {
  const sets = chosenSets(view, places, layer);
  if (level > 0) {
    const { rows, columns, stride } = view.levels[level - 1];
    return { rows, columns, stride, values: countSets(view, sets, level - 1) };
  }
  const counts = view.levels.map((_, index) => countSets(view, sets, index));
  return overLevels(view, (cellOf) => counts.findIndex((each, index) => each[cellOf(index)]) + 1);
}

/** Values of tokens in 0..255; level 0 takes the highest of all levels. */
function valueGrid(view, bytes, level, first = 0) {
  const starts = levelStarts(view).map((start) => start + first);
  if (level > 0) {
    const { rows, columns, stride } = view.levels[level - 1];
    const start = starts[level - 1];
    return { rows, columns, stride, values: bytes.subarray(start, start + rows * columns) };
  }
  return overLevels(view, (cellOf) => {
    let best = 0;
    for (let index = 0; index < starts.length; index += 1) {
      best = Math.max(best, bytes[starts[index] + cellOf(index)]);
    }
    return best;
  });
}

/** Sampling points of one detection: x, y in [0, 1], weight, head and level of each. */
function samplingPoints(view, attention, index) {
  const { heads, levels, samples, units } = attention;
  const size = heads * levels * samples;
  const places = new Int16Array(view.bytes, attention.points[0], attention.points[1] / 2);
  const weights = new Uint16Array(view.bytes, attention.weights[0], attention.weights[1] / 2);
  return Array.from({ length: size }, (_, number) => ({
    x: places[2 * (index * size + number)] / units,
    y: places[2 * (index * size + number) + 1] / units,
    weight: weights[index * size + number] / 65535,
    head: Math.floor(number / (levels * samples)),
    level: Math.floor(number / samples) % levels,
  }));
}
