// The page: pictures are chosen, dropped or pasted, and go to the server one by one, two at a
// time. What a server or a file's name says becomes text, never markup.

import { glow, preview } from "./picture.js";
import { classify, describe, Refused } from "./server.js";

const TOP = 5; // labels of a picture
const ACTIVE = 2; // requests at a time
const find = (id) => document.getElementById(id);

let token = ""; // here and nowhere else
let model = null; // what the server says of it; null until it did
let queue = []; // pictures that wait
let active = 0; // how many are with the server
let drawing = Promise.resolve(); // previews are made one after the other
const pictures = new Set();

// The model

async function meet() {
  try {
    model = await describe(token);
  } catch (error) {
    if (error.token) return askForToken();
    say(error.message);
    find("model").textContent = error.message;
    return setTimeout(meet, 3000);
  }
  find("key").hidden = true;
  introduce(model);
  curl();
  next();
}

function introduce({ name, labels, image_size: size, runtime, precision, gate, limits }) {
  document.title = `${name} · Vitrail`;
  find("model").textContent = `${name} · ${labels.length.toLocaleString("en")} labels`;
  const facts = [
    ["Name", name],
    ["Labels", some(labels)],
    ["Sees", `${size[1]} × ${size[0]} pixels`],
    ["Runs on", [runtime, precision].filter(Boolean).join(", ")],
    ["Accuracy", measured(gate)],
    ["Takes", limits && `files up to ${bytes(limits.max_bytes)}`],
  ];
  const rows = facts.filter(([, fact]) => fact);
  find("facts").replaceChildren(...rows.flatMap(([n, f]) => [make("dt", n), make("dd", f)]));
  find("about").hidden = false;
  const looks = attends();
  find("glow").hidden = find("glow-note").hidden = !looks;
}

const attends = () => model?.extras?.includes("attention") ?? false;

const some = (labels) =>
  labels.length > 12
    ? `${labels.slice(0, 10).join(", ")} and ${(labels.length - 10).toLocaleString("en")} more`
    : labels.join(", ");

function measured(gate) {
  if (!gate) return "not measured";
  const figure =
    gate.exported_top1 == null // where a picture may have several labels
      ? `mean average precision ${percent(gate.exported_map)}`
      : `${percent(gate.exported_top1)} right`;
  return `${figure} on ${gate.n.toLocaleString("en")} pictures`;
}

// The token

function askForToken() {
  const problem = token && "The server does not take this token.";
  find("key").hidden = false;
  find("key-problem").textContent = problem;
  find("key-problem").hidden = !problem;
  find("token").setAttribute("aria-invalid", String(Boolean(problem)));
  if (problem) say(problem);
  find("token").focus();
  curl(true);
}

find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value.trim();
  find("token").value = "";
  meet();
});

// Pictures come in

let pasted = 0; // how many; they have no names of their own

function add(files, fromClipboard = false) {
  const batch = files.map((file) => {
    const unnamed = fromClipboard && file.name === "image.png";
    return new Picture(file, unnamed ? `Pasted picture ${++pasted}` : file.name);
  });
  for (const picture of batch) pictures.add(picture);
  find("list").prepend(...batch.map((picture) => picture.item));
  shown();
  next();
}

find("files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let depth = 0; // of the elements that a drag has entered

addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  depth++;
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (carriesFiles(event) && --depth <= 0) document.body.classList.remove("over");
});
addEventListener("dragover", (event) => {
  if (carriesFiles(event)) event.preventDefault();
});
addEventListener("drop", (event) => {
  depth = 0;
  document.body.classList.remove("over");
  if (!carriesFiles(event)) return;
  event.preventDefault();
  add([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) {
    event.preventDefault();
    add(files, true);
  }
});

// One picture

class Picture {
  constructor(file, name) {
    this.file = file;
    this.name = name;
    this.leave = new AbortController();
    this.figure = make("figure");
    this.told = make("div");
    this.told.className = "told";
    const close = button("×", "plain", () => this.remove());
    close.setAttribute("aria-label", `Remove ${name}`);
    const title = make("h3", name);
    title.title = name;
    const head = make("div", title, close);
    head.className = "name";
    this.item = make("li", this.figure, make("div", head, this.told));
    this.draw();
    this.queue();
  }

  queue() {
    this.failed = false;
    this.settle();
    this.tell(state("Waiting for its turn"));
    queue.push(this);
  }

  async draw() {
    const before = drawing;
    let done;
    drawing = new Promise((resolve) => (done = resolve));
    await before;
    const canvas = this.leave.signal.aborted ? null : await preview(this.file);
    done();
    if (canvas) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", this.name);
      this.canvas = canvas;
      this.figure.replaceChildren(canvas);
      if (this.attention) this.light();
    } else {
      this.figure.className = "none";
      this.figure.replaceChildren(make("p", "This browser cannot show such a file."));
      this.settle();
    }
  }

  light() {
    const over = glow(this.attention, this.canvas.width, this.canvas.height);
    over.className = "glow";
    over.setAttribute("aria-hidden", "true");
    this.figure.replaceChildren(this.canvas, over);
  }

  async ask() {
    const most = model?.limits?.max_bytes;
    if (most && this.file.size > most) {
      throw new Refused(`${bytes(this.file.size)} is more than the ${bytes(most)} that this server takes.`);
    }
    await readable(this.file);
    return classify(this.file, {
      token,
      topK: TOP,
      attention: attends(),
      signal: this.leave.signal,
      sending: () => this.tell(state("Looking")),
      waiting: (seconds) =>
        this.tell(state(`The server is busy; trying again in ${Math.ceil(seconds)} s`)),
    });
  }

  answer({ predictions, attention }) {
    const [first] = predictions;
    const top = make("p", first.label);
    top.className = "top";
    const rows = predictions.map(({ label, probability }) => row(label, probability));
    const labels = make("ol", ...rows);
    labels.className = "labels";
    this.tell(top, labels);
    say(`${this.name}: ${first.label}, ${percent(first.probability)}`);
    if (attention) {
      this.attention = attention;
      if (this.canvas) this.light();
    }
  }

  fail(error) {
    const problem = make("p", error.message);
    problem.className = "problem";
    const parts = [problem];
    if (error.again || error.token) {
      const again = button("Try again", "plain", () => {
        find("files").focus();
        this.queue();
        next();
      });
      again.setAttribute("aria-label", `Try ${this.name} again`);
      parts.push(again);
    }
    this.tell(...parts);
    this.failed = true;
    this.settle();
    say(`${this.name}: ${error.message}`);
  }

  // Where there is neither picture nor answer, a sentence is enough.
  settle() {
    const bare = this.failed && this.figure.className === "none";
    this.figure.hidden = bare;
    this.item.classList.toggle("bare", bare);
  }

  tell(...parts) {
    this.told.replaceChildren(...parts);
  }

  remove() {
    const neighbour = this.item.nextElementSibling ?? this.item.previousElementSibling;
    this.drop();
    (neighbour?.querySelector(".name button") ?? find("files")).focus();
    shown();
  }

  drop() {
    this.leave.abort();
    this.item.remove();
    pictures.delete(this);
    queue = queue.filter((other) => other !== this);
  }
}

// A folder, or a file that went away, cannot be read: better said now than as a broken connection.
async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Refused("This is a folder, or a file that cannot be read any more.");
  }
}

// The queue

async function next() {
  if (!model || active >= ACTIVE || !queue.length) return;
  const picture = queue.shift();
  active++;
  next();
  try {
    picture.answer(await picture.ask());
  } catch (error) {
    if (error.token) {
      picture.queue(); // until there is a token
      model = null;
      askForToken();
    } else if (!picture.leave.signal.aborted) {
      picture.fail(error instanceof Refused ? error : new Refused(`This page failed: ${error.message}`));
    }
  }
  active--;
  next();
}

find("clear").addEventListener("click", () => {
  for (const picture of [...pictures]) picture.drop();
  shown();
  find("files").focus();
  say("Cleared");
});

find("opacity").addEventListener("input", (event) => {
  document.documentElement.style.setProperty("--glow", event.target.value / 100);
});

function shown() {
  find("answers").hidden = !pictures.size;
  document.body.classList.toggle("some", pictures.size > 0);
}

// The command line

function curl(asked = Boolean(token)) {
  const address = new URL(`v1/classify?top_k=${TOP}`, document.baseURI).href;
  const parts = ["curl"];
  if (asked) parts.push('-H "Authorization: Bearer $VITRAIL_TOKEN"');
  parts.push("-F image=@picture.jpg", `'${address}'`);
  find("curl").textContent = parts.join(" ");
}

find("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(find("curl").textContent);
  } catch {
    getSelection().selectAllChildren(find("curl")); // over plain HTTP only the old way is there
    if (!document.execCommand("copy")) return say("Press Ctrl and C to copy");
  }
  find("copy").textContent = "Copied";
  say("Copied");
  setTimeout(() => (find("copy").textContent = "Copy"), 2000);
});

// Small parts

function make(name, ...content) {
  const element = document.createElement(name);
  element.append(...content);
  return element;
}

function button(text, kind, press) {
  const element = make("button", text);
  element.type = "button";
  element.className = kind;
  element.addEventListener("click", press);
  return element;
}

function state(text) {
  const element = make("p", text);
  element.className = "waiting";
  return element;
}

function row(label, probability) {
  const name = make("span", label);
  const share = make("span", percent(probability));
  const bar = make("span");
  const track = make("span", bar);
  name.className = "label";
  share.className = "share";
  track.className = "track";
  track.setAttribute("aria-hidden", "true");
  bar.style.width = `${100 * probability}%`;
  return make("li", name, share, track);
}

function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  if (share < 1 && share >= 0.9995) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

function bytes(count) {
  return count < 1e6 ? `${Math.ceil(count / 1e3)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

function say(text) {
  find("said").textContent = text;
}

curl();
meet();
