// Colors of steps and shares, as the figures of sparsedet.visualization have them.

const RAMP = [
  [72, 60, 160],
  [49, 104, 200],
  [33, 165, 150],
  [110, 206, 88],
  [253, 231, 37],
];
const DOT = "rgb(255, 40, 90)";

/** The color [r, g, b] of a share in [0, 1]. */
function rampColor(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((value, channel) => value + (place - low) * (RAMP[low + 1][channel] - value));
}

/** The color of step `number` of `most`, from violet to yellow; one alone is yellow. */
function stepColor(number, most) {
  return rampColor(number / most);
}

function css(color) {
  return `rgb(${color.map(Math.round).join(", ")})`;
}

/** Black or white, whichever has the higher contrast on a color. */
function inkOn(color) {
  const linear = color.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return luminance > 0.179 ? "#000000" : "#ffffff";
}

function parseHex(text) {
  return [1, 3, 5].map((first) => parseInt(text.slice(first, first + 2), 16));
}

function swatch(text, color) {
  return element("span", { class: "swatch", style: `background:${css(color)};color:${inkOn(color)}` }, text);
}

function rampBar() {
  const stops = RAMP.map(css).join(", ");
  return element("span", { class: "ramp", style: `background:linear-gradient(90deg, ${stops})` });
}
