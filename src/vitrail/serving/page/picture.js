// A picture on the page: a small upright copy, and over it where the model looked.

import { turned, webpOrientation } from "./orientation.js";

const LONGEST = 1024; // pixels of the copy; the file itself is what is sent
const SMALL = 160; // pictures up to here are shown larger, with their pixels as squares
const SHOWN = 256; // pixels, of a small one

// From unseen to seen, as light through glass: night, dusk, ember, gold, daylight; red, green, blue,
// and how much is covered.
const RAMP = [
  [8, 9, 26, 0.84],
  [66, 20, 62, 0.74],
  [188, 54, 48, 0.6],
  [250, 152, 40, 0.55],
  [255, 228, 130, 0.58],
];
const LIFT = 0.75; // below 1: middling places are told apart better

// A file as a canvas, its longer side at most LONGEST, turned as its EXIF says; null where the
// browser cannot read this kind of file (the server may all the same).
export async function preview(file) {
  let image;
  try {
    const turn = await webpOrientation(file);
    image = await (turn === 1 ? opened(file) : createImageBitmap(file, { imageOrientation: "none" }));
    return copy(image, turn);
  } catch {
    return null;
  } finally {
    if (image instanceof ImageBitmap) image.close();
  }
}

async function opened(file) {
  const address = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    return image;
  } finally {
    URL.revokeObjectURL(address);
  }
}

function copy(image, turn) {
  const { width, height } = image;
  const longer = Math.max(width, height);
  const small = longer <= SMALL;
  const scale = small ? Math.floor(SHOWN / longer) : Math.min(1, LONGEST / longer);
  const [w, h] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = turn >= 5 ? [h, w] : [w, h];
  const paper = canvas.getContext("2d");
  paper.imageSmoothingEnabled = !small;
  paper.imageSmoothingQuality = "high";
  paper.setTransform(...turned(turn, w, h));
  paper.drawImage(image, 0, 0, w, h);
  return canvas;
}

// Attention {values, region} as a canvas that lies over one of this size: `values` a list of rows,
// `region` the left, top, right and bottom of what the model sees, as shares of the picture. The
// brightest place is the most looked at; what is not seen is left as it is, outside a thin frame.
export function glow(attention, width, height) {
  const [left, top, right, bottom] = attention.region;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const paper = canvas.getContext("2d");
  const box = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  paper.imageSmoothingQuality = "high";
  paper.drawImage(tile(attention.values), ...box);
  if (left > 0.002 || top > 0.002 || right < 0.998 || bottom < 0.998) {
    const line = Math.max(1.5, Math.max(width, height) / 320);
    paper.lineWidth = line;
    paper.strokeStyle = "rgb(255 255 255 / 0.9)";
    const [x, y, w, h] = box;
    paper.strokeRect(x + line / 2, y + line / 2, w - line, h - line);
  }
  return canvas;
}

// One pixel a place; it is stretched, smoothly, when it is drawn.
function tile(rows) {
  const values = rows.flat();
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const small = document.createElement("canvas");
  small.width = rows[0].length;
  small.height = rows.length;
  const pixels = new ImageData(small.width, small.height);
  values.forEach((value, place) => {
    pixels.data.set(colour(((value - low) / span) ** LIFT), 4 * place);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}

function colour(share) {
  const at = share * (RAMP.length - 1);
  const below = Math.min(Math.floor(at), RAMP.length - 2);
  const mixed = RAMP[below].map((part, i) => part + (RAMP[below + 1][i] - part) * (at - below));
  return [...mixed.slice(0, 3), 255 * mixed[3]];
}
