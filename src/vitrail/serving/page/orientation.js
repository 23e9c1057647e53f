// How a WebP file is turned. Browsers turn a JPEG or PNG as its EXIF says, but not all of them a
// WebP, which the model sees turned; so for these alone the page reads the number itself.

const ORIENTATION = 0x0112; // the EXIF tag
const MOST_CHUNKS = 1000;

// 1 to 8 as in EXIF; 1 for a file that is no WebP or says nothing.
export async function webpOrientation(file) {
  const head = await view(file, 0, 12);
  if (head.byteLength < 12 || word(head, 0) !== "RIFF" || word(head, 8) !== "WEBP") return 1;
  let at = 12;
  for (let count = 0; count < MOST_CHUNKS && at + 8 <= file.size; count++) {
    const chunk = await view(file, at, 8);
    const length = chunk.getUint32(4, true);
    if (word(chunk, 0) === "EXIF") return orientation(await view(file, at + 8, length));
    at += 8 + length + (length % 2);
  }
  return 1;
}

async function view(file, start, length) {
  return new DataView(await file.slice(start, start + length).arrayBuffer());
}

function word(data, at) {
  return String.fromCharCode(...[0, 1, 2, 3].map((i) => data.getUint8(at + i)));
}

function orientation(exif) {
  try {
    const begin = word(exif, 0) === "Exif" ? 6 : 0;
    const little = exif.getUint8(begin) === 0x49;
    const table = begin + exif.getUint32(begin + 4, little);
    const entries = exif.getUint16(table, little);
    for (let entry = 0; entry < entries; entry++) {
      const at = table + 2 + 12 * entry;
      if (exif.getUint16(at, little) !== ORIENTATION) continue;
      const turn = exif.getUint16(at + 8, little);
      return turn >= 1 && turn <= 8 ? turn : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // it points beyond its end
  }
  return 1;
}

// The canvas transformation that turns a picture of this size.
export function turned(orientation, width, height) {
  return [
    [1, 0, 0, 1, 0, 0],
    [-1, 0, 0, 1, width, 0],
    [-1, 0, 0, -1, width, height],
    [1, 0, 0, -1, 0, height],
    [0, 1, 1, 0, 0, 0],
    [0, 1, -1, 0, height, 0],
    [0, -1, -1, 0, height, width],
    [0, -1, 1, 0, 0, width],
  ][orientation - 1];
}
