// What the page says to the server, and what its answers mean in words. Addresses are relative to
// the page, so that it works behind a proxy that puts a folder in front.

const PERSISTENCE = 120; // seconds in which a picture is sent again where there is no room for it
const LONGEST_WAIT = 30; // seconds between two of them
const PATIENCE = 120; // seconds for one answer

// A picture or a page that was refused: the message is a sentence for the reader. `again` says
// whether another try may help, `token` that the server asks for one.
export class Refused extends Error {
  constructor(message, { again = false, token = false } = {}) {
    super(message);
    this.again = again;
    this.token = token;
  }
}

// What the server says of its model.
export async function describe(token) {
  const answer = await ask("v1/model", { headers: headers(token) });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// One file to {predictions, attention}. `waiting(seconds)` is called before each wait for room,
// `sending()` before each try.
export async function classify(file, { token, topK, attention, signal, waiting, sending }) {
  const query = new URLSearchParams({ top_k: topK });
  if (attention) query.set("attention", "true");
  const sent = { method: "POST", headers: headers(token, kind(file)), body: file, signal };
  const until = Date.now() + 1000 * PERSISTENCE;
  for (let tries = 1; ; tries++) {
    sending();
    const answer = await ask(`v1/classify?${query}`, sent);
    if (answer.ok) {
      const [result] = (await body(answer)).results ?? [];
      if (!result) throw new Refused("The server’s answer makes no sense to this page.");
      if (result.error) throw new Refused(sentence(result.error));
      return result;
    }
    // Without Retry-After a 503 may be the picture's own doing: whoever sent it decides.
    const later = answer.status === 503 && answer.headers.has("Retry-After");
    const busy = answer.status === 429 || later;
    const seconds = retryAfter(answer) ?? Math.min(2 ** tries / 2, LONGEST_WAIT);
    if (!busy || Date.now() + 1000 * seconds > until) throw await refusal(answer);
    await answer.body?.cancel();
    waiting(seconds);
    await sleep(seconds, signal);
  }
}

async function ask(path, options) {
  const limit = AbortSignal.timeout(PATIENCE * 1000);
  const signal = options.signal ? either(options.signal, limit) : limit;
  try {
    return await fetch(path, { ...options, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    if (limit.aborted) throw new Refused("The server took too long to answer.", { again: true });
    throw new Refused("The server does not answer. Is it still running?", { again: true });
  }
}

function headers(token, type) {
  const made = {};
  if (token) made.Authorization = `Bearer ${token}`;
  if (type) made["Content-Type"] = type;
  return made;
}

// A file's own type where it is a picture's; else the server looks at its bytes.
function kind(file) {
  return /^image\/[\w.+-]+$/.test(file.type) ? file.type : "application/octet-stream";
}

async function body(answer) {
  try {
    return await answer.json();
  } catch {
    throw new Refused("The server broke off in the middle of its answer.", { again: true });
  }
}

const MEANING = {
  401: "The server asks for a token.",
  408: "The picture took too long to reach the server.",
  413: "The picture is larger than the server takes.",
  415: "This is no kind of file that the server reads.",
  429: "The server is busy.",
  503: "The server is not ready.",
  504: "The server did not get to this picture in time.",
};

async function refusal(answer) {
  let told = "";
  try {
    const said = await answer.json();
    told = typeof said.error === "string" ? said.error : said.error?.message ?? said.detail;
  } catch {
    // not ours: a proxy's page, say
  }
  const { status } = answer;
  const own = typeof told === "string" && status !== 401 ? sentence(told) : "";
  const words = own || MEANING[status] || `The server answered with status ${status}.`;
  return new Refused(words, { again: status === 408 || status >= 429, token: status === 401 });
}

function sentence(words) {
  const text = words.trim();
  if (!text) return "";
  const begun = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

// Seconds of a Retry-After, which is a number or a date.
function retryAfter(answer) {
  const told = answer.headers.get("Retry-After");
  if (!told) return null;
  const seconds = /^\d+$/.test(told) ? Number(told) : (Date.parse(told) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0.5), LONGEST_WAIT) : null;
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}

// AbortSignal.any, which not every browser has yet.
function either(one, other) {
  if (AbortSignal.any) return AbortSignal.any([one, other]);
  const both = new AbortController();
  for (const signal of [one, other]) {
    if (signal.aborted) both.abort(signal.reason);
    signal.addEventListener("abort", () => both.abort(signal.reason), { once: true });
  }
  return both.signal;
}
