/** Small helpers for the elements of the page. */

/** From this many pixels a side, a picture is scaled smoothly. */
const SMOOTH_FROM = 64;

export const element = (id) => document.getElementById(id);

/** Show a complaint; an empty one takes it away. */
export function complain(id, message) {
  element(id).textContent = message;
  element(id).hidden = !message;
}

/** Show a picture; one of few pixels shows them as squares. */
export function show(id, address, description) {
  const image = element(id);
  image.onload = () => image.classList.toggle("small", image.naturalWidth < SMOOTH_FROM);
  image.onerror = () => { image.hidden = true; };
  image.src = address;
  image.alt = description;
  image.hidden = false;
}

/** What to say when the server cannot be reached or refuses. */
export async function complaintOf(response) {
  const content = await response.json().catch(() => ({}));
  return content.error ?? `the server says ${response.status}`;
}

export const UNREACHABLE = "the server must be running, got no answer; start mmar demo again";
