/** The left half: a caption in, a picture after every step out. */

import { complain, complaintOf, element, show, UNREACHABLE } from "./elements.js";
import { jsonLines } from "./lines.js";

/** Pictures of the drawing, one per step; what is shown beside them. */
const drawing = { caption: "", seed: 0, total: 0, pictures: [] };
let running = null;

/**
 * Wire the half up.
 * @param {(blob: Blob) => void} ask Takes a picture over to the other half.
 */
export function setUpDrawing(ask) {
  element("draw").addEventListener("submit", (event) => {
    event.preventDefault();
    draw(new FormData(event.target));
  });
  element("stop").addEventListener("click", () => running?.abort());
  element("step").addEventListener("input", () => look(Number(element("step").value)));
  element("take").addEventListener("click", async () => ask(await (await fetchPicture()).blob()));
}

const fetchPicture = () => fetch(element("picture").src);

async function draw(form) {
  if (running) return;
  running = new AbortController();
  busy(true);
  complain("draw-error", "");
  try {
    await receive(await request(form, running.signal), form.get("caption"));
  } catch (error) {
    told(error);
  } finally {
    running = null;
    busy(false);
  }
}

function request(form, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetch("draw", { method: "POST", headers, body: JSON.stringify(Object.fromEntries(form)), signal });
}

async function receive(response, caption) {
  if (!response.ok) throw new Error(await complaintOf(response));
  for await (const line of jsonLines(response)) {
    if (line.error) throw new Error(line.error);
    if ("seed" in line) begin(caption, line.seed);
    else take(line);
  }
  if (drawing.pictures.length < (drawing.total || 1)) throw new Error(UNREACHABLE);
}

function begin(caption, seed) {
  Object.assign(drawing, { caption, seed, total: 0, pictures: [] });
  element("picture").hidden = true;
  element("progress").removeAttribute("value");
  element("status").textContent = "Waiting for the first step …";
}

function take({ done, total, picture }) {
  drawing.total = total;
  drawing.pictures.push(picture);
  element("progress").value = done / total;
  element("step").max = done;
  element("step").value = done;
  look(done);
}

/** Show the picture after a step. */
function look(step) {
  const share = Math.round((100 * step) / drawing.total);
  show("picture", drawing.pictures[step - 1], drawing.caption || "a picture without a caption");
  element("status").textContent = `Step ${step} of ${drawing.total} · ${share} % · seed ${drawing.seed}`;
}

function busy(yes) {
  const some = drawing.pictures.length > 0;
  element("start").disabled = yes;
  element("stop").disabled = !yes;
  element("step").disabled = yes || !some;
  element("take").disabled = yes || !some;
  if (!yes && !some) element("progress").value = 0;
}

function told(error) {
  if (error.name === "AbortError") element("status").textContent += " · stopped";
  else complain("draw-error", error instanceof TypeError ? UNREACHABLE : error.message);
}
