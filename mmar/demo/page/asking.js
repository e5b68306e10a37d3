/** The right half: an image, and a conversation about it. */

import { complain, complaintOf, element, show, UNREACHABLE } from "./elements.js";

let image = null;

/**
 * Wire the half up.
 * @returns {(blob: Blob) => void} Puts an image in the place of the one that is asked about.
 */
export function setUpAsking() {
  element("image").addEventListener("change", (event) => choose(event.target.files[0] ?? null));
  element("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(element("question").value);
  });
  return (blob) => {
    element("image").value = "";
    choose(blob);
    element("question").focus();
  };
}

/** Another image begins another conversation. */
function choose(blob) {
  URL.revokeObjectURL(element("preview").src);
  image = blob;
  element("history").replaceChildren();
  complain("ask-error", "");
  if (blob) show("preview", URL.createObjectURL(blob), "The image that is asked about");
  else element("preview").hidden = true;
}

async function ask(question) {
  const about = image;
  element("send").disabled = true;
  complain("ask-error", "");
  try {
    const answer = await answerOf(about, question);
    if (about === image) remember(question, answer);
  } catch (error) {
    complain("ask-error", error instanceof TypeError ? UNREACHABLE : error.message);
  } finally {
    element("send").disabled = false;
  }
}

async function answerOf(blob, question) {
  const address = `answer?${new URLSearchParams({ question })}`;
  const response = await fetch(address, { method: "POST", body: blob });
  if (!response.ok) throw new Error(await complaintOf(response));
  return (await response.json()).answer;
}

function remember(question, answer) {
  const turn = document.createElement("li");
  turn.append(paragraph("question", question), paragraph("answer", answer));
  element("history").append(turn);
  element("question").value = "";
}

function paragraph(kind, text) {
  const out = document.createElement("p");
  out.className = kind;
  out.textContent = text;
  return out;
}
